// SPDX-License-Identifier: MIT OR Apache-2.0

//! The header is what the Rust sources say, C and C++ take it, and the example is built with it and
//! linked to the library, shared and static, as it is installed.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

const STRICT: &[&str] = &["-Wall", "-Wextra", "-Werror", "-pedantic"];

/// The directory of this package: asked for now, as the program may have been built elsewhere.
fn here() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").unwrap().into()
}

/// Runs a program and gives what it printed, if it succeeds.
fn run(command: &mut Command) -> String {
    let output = command.output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{command:?}: {out}{err}");
    out
}

#[test]
fn the_header_is_that_of_the_sources() {
    let path = here().join("include/blksnap.h");
    let config = cbindgen::Config::from_file(here().join("cbindgen.toml")).unwrap();
    let mut builder = cbindgen::Builder::new().with_config(config);
    for name in [
        "failure", "types", "session", "unused", "changes", "trackers",
    ] {
        builder = builder.with_src(here().join(format!("src/{name}.rs")));
    }
    let mut made = Vec::new();
    builder.generate().unwrap().write(&mut made);
    // C has no heading for what a caller has to keep to.
    let made = String::from_utf8(made)
        .unwrap()
        .replace(" * # Safety\n *\n", "");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &made).unwrap();
    }
    assert!(
        fs::read_to_string(&path).unwrap_or_default() == made,
        "{} differs from the sources; `UPDATE=1 cargo test -p blksnap-c header` makes it anew",
        path.display()
    );
}

#[test]
fn c_and_cpp_take_the_header() {
    for (compiler, language, standards) in [
        ("gcc", "c", ["c99", "c17"]),
        ("g++", "c++", ["c++11", "c++20"]),
    ] {
        for standard in standards {
            let mut command = Command::new(compiler);
            command.args(STRICT).args(["-x", language, "-fsyntax-only"]);
            command.arg(format!("-std={standard}"));
            run(command.arg(here().join("include/blksnap.h")));
        }
    }
}

/// Where this build puts the library: beside the directory of this test.
fn built() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.ancestors().nth(2).unwrap().into()
}

#[test]
fn the_example_is_built_and_runs() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = dir.path().join("usr");
    run(Command::new(here().join("install"))
        .arg(built())
        .arg(&prefix));
    let flags = |how: &[&str]| -> Vec<String> {
        let mut command = Command::new("pkg-config");
        command.env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig"));
        let flags = run(command.args(how).arg("blksnap"));
        flags.split_whitespace().map(str::to_owned).collect()
    };
    for (kind, flags) in [
        ("shared", flags(&["--cflags", "--libs"])),
        ("static", {
            let mut flags = flags(&["--cflags", "--libs", "--static"]);
            let library = prefix.join("lib/libblksnap.a").display().to_string();
            flags
                .iter_mut()
                .filter(|flag| *flag == "-lblksnap")
                .for_each(|flag| *flag = library.clone());
            flags
        }),
    ] {
        let program = dir.path().join(kind);
        let mut command = Command::new("gcc");
        command.args(STRICT).arg("-O2").arg("-o").arg(&program);
        run(command.arg(here().join("examples/backup.c")).args(flags));
        // A file is not a device, whether the module is loaded or not.
        let mut command = Command::new(&program);
        command.env("LD_LIBRARY_PATH", prefix.join("lib"));
        let output = command
            .args(["/tmp", "/tmp", "/proc/self/exe"])
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{kind}: {error}");
        assert!(
            error.contains("/proc/self/exe: not a block device"),
            "{kind}: {error}"
        );
    }
}
