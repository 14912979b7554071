// SPDX-License-Identifier: GPL-2.0
/*
 * Inline functions of C for Rust, as a part of the module: the kernel has its own
 * under the same names, does not export them all, and lacks those that are new.
 */
#include "helpers.c"
