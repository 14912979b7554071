// SPDX-License-Identifier: MIT OR Apache-2.0

//! Gives the shared library the name that programs ask for when they start. The number changes when
//! programs have to be compiled again.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libblksnap.so.1");
}
