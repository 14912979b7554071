// SPDX-License-Identifier: MIT OR Apache-2.0

//! `libblksnap`: the session of the [`blksnap_rs`] library for C.
//!
//! A call comes in through one of the `extern "C"` functions, which turns pointers into references
//! and strings into devices and paths, works on the Rust session, and answers with a number:
//! [`failure::guard`] makes a negative errno and a message of an error, and of a panic, too, so that
//! none crosses the border. `include/blksnap.h` is made of these files; a test compares it.

mod changes;
mod failure;
mod pointer;
mod session;
mod trackers;
mod types;
mod unused;
