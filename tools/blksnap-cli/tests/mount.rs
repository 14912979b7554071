// SPDX-License-Identifier: GPL-2.0-or-later

//! `blksnap mount`, where this machine has FUSE, and lets the tests mount something.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use blksnap_backup::Format;
use blksnap_backup::testing::{SIZE, Store, numbers, test_dir, three, three_in};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const MIB: usize = 1 << 20;

fn blksnap() -> Command {
    Command::new(env!("CARGO_BIN_EXE_blksnap"))
}

fn output(args: &[&str]) -> Output {
    blksnap().args(args).output().unwrap()
}

/// A mount that is served.
struct Mounted {
    point: TempDir,
    child: Child,
    told: BufReader<std::process::ChildStderr>,
}

impl Mounted {
    /// `None`, and said, where nothing can be mounted.
    fn of(backups: &Path) -> Option<Self> {
        Self::on(test_dir(), backups)
    }

    fn on(point: TempDir, backups: &Path) -> Option<Self> {
        // Who has started the tests may have signals ignored, as nohup does, and so would the command.
        let mut child = Command::new("env")
            .args(["--default-signal", env!("CARGO_BIN_EXE_blksnap"), "mount"])
            .args([backups, point.path()])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        said.read_line(&mut line).unwrap();
        let mut told = BufReader::new(child.stderr.take().unwrap());
        if line.is_empty() {
            told.read_to_string(&mut line).unwrap();
            child.wait().unwrap();
            let none = ["no FUSE", "only root may mount", "cannot open /dev/fuse"];
            assert!(none.iter().any(|none| line.contains(none)), "{line}");
            eprintln!("skipped: {line}");
            return None;
        }
        assert_eq!(line, format!("mounted on {}\n", point.path().display()));
        Some(Self { point, child, told })
    }

    fn file(&self, id: &str) -> PathBuf {
        self.point.path().join(id).join("vda")
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the end; gives the exit code, and what was told.
    fn end(mut self) -> (Option<i32>, String) {
        let mut told = String::new();
        self.told.read_to_string(&mut told).unwrap();
        let code = self.child.wait().unwrap().code();
        assert_eq!(
            fs::read_dir(self.point.path()).unwrap().count(),
            0,
            "it is unmounted"
        );
        (code, told)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A test that has failed leaves nothing.
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
            let _ = unmount(self.point.path(), UnmountFlags::DETACH);
        }
    }
}

#[test]
fn every_backup_is_there_for_many_readers() {
    let stores = [
        ("raw", three(Format::Raw)),
        ("qcow2", three(Format::Qcow2)),
        ("compressed", three_in(Store::compressed(SIZE as u64))),
        ("rbd-diff", three(Format::RbdDiff)),
    ];
    for (format, (store, mut backups)) in stores {
        let Some(mounted) = Mounted::of(store.path()) else {
            return;
        };
        // One that is made meanwhile.
        let (base, data) = backups.last().unwrap().clone();
        backups.push((store.incremental(&base, &data, &[]), data));
        thread::scope(|scope| {
            for reader in 0..6 {
                let (backups, mounted) = (&backups, &mounted);
                scope.spawn(move || {
                    let mut random = numbers(100 + reader);
                    for _ in 0..100 {
                        let (id, data) = &backups[random.next().unwrap() % backups.len()];
                        let start = random.next().unwrap() % SIZE;
                        let end = SIZE.min(start + random.next().unwrap() % (300 << 10));
                        let mut found = vec![1; end - start];
                        let file = File::open(mounted.file(id)).unwrap();
                        file.read_exact_at(&mut found, start as u64).unwrap();
                        assert!(found == data[start..end], "{format} {id} {start}..{end}");
                    }
                });
            }
        });
        let listed = fs::read_dir(mounted.point.path()).unwrap();
        let mut listed: Vec<_> = listed.map(|entry| entry.unwrap().file_name()).collect();
        listed.sort();
        assert!(
            listed.iter().eq(backups.iter().map(|(id, _)| &**id)),
            "{listed:?}"
        );
        for (id, data) in &backups {
            let file = mounted.file(id);
            assert!(fs::read(&file).unwrap() == *data, "{format} {id}");
            let (meta, dir) = (
                file.metadata().unwrap(),
                file.parent().unwrap().metadata().unwrap(),
            );
            assert_eq!(
                (meta.mode(), meta.uid(), dir.mode()),
                (0o100_400, 0, 0o40_500)
            );
            assert_eq!((meta.len(), meta.mtime()), (SIZE as u64, 0));
            let error = File::options().write(true).open(&file).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(Errno::ROFS.raw_os_error()));
        }
        assert!(
            !mounted
                .point
                .path()
                .join("20000101T000000Z-00000000")
                .exists()
        );
        let dir = store.path().to_str().unwrap();
        let prune = output(&["prune", dir, "--keep", "1"]);
        let told = String::from_utf8(prune.stderr).unwrap();
        assert!(told.contains("are being read"), "{told}");
        mounted.signal(Signal::TERM);
        assert_eq!(mounted.end(), (Some(143), "blksnap: terminated\n".into()));
        assert!(output(&["prune", dir, "--keep", "1"]).status.success());
    }
}

#[test]
fn it_ends_when_it_is_unmounted_and_nobody_uses_it() {
    let (store, backups) = three(Format::Raw);
    // From elsewhere, with one backup only.
    let Some(mounted) = Mounted::of(&store.path().join(&backups[1].0)) else {
        return;
    };
    assert_eq!(fs::read_dir(mounted.point.path()).unwrap().count(), 1);
    assert!(fs::read(mounted.file(&backups[1].0)).unwrap() == backups[1].1);
    assert!(!mounted.file(&backups[0].0).exists());
    unmount(mounted.point.path(), UnmountFlags::empty()).unwrap();
    assert_eq!(mounted.end(), (Some(0), String::new()));

    // By a signal, while a file is open; hidden meanwhile, or not.
    for hidden in [false, true] {
        let mut mounted = Mounted::of(store.path()).unwrap();
        let file = File::open(mounted.file(&backups[2].0)).unwrap();
        mounted.signal(Signal::INT);
        let mut line = String::new();
        mounted.told.read_line(&mut line).unwrap();
        assert!(
            line.contains(" is busy: it is unmounted as soon as"),
            "{line}"
        );
        if hidden {
            unmount(mounted.point.path(), UnmountFlags::DETACH).unwrap();
        }
        let mut found = vec![0; SIZE];
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found == backups[2].1);
        assert!(mounted.child.try_wait().unwrap().is_none());
        drop(file);
        assert_eq!(mounted.end(), (Some(130), "blksnap: interrupted\n".into()));
    }
}

#[test]
fn a_killed_one_is_cleared_away_by_the_next() {
    let (store, backups) = three(Format::Raw);
    let Some(mut killed) = Mounted::of(store.path()) else {
        return;
    };
    killed.child.kill().unwrap();
    killed.child.wait().unwrap();
    let point = std::mem::replace(&mut killed.point, test_dir());
    let error = fs::read_dir(point.path()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::NOTCONN.raw_os_error()));
    let next = Mounted::on(point, store.path()).unwrap();
    assert!(fs::read(next.file(&backups[2].0)).unwrap() == backups[2].1);
    next.signal(Signal::HUP);
    let (code, told) = next.end();
    assert_eq!(code, Some(129));
    assert!(
        told.contains("what a killed `blksnap mount` had left on"),
        "{told}"
    );
}

/// Whether a part of a file can be read, and is what it should be.
fn reads(file: &File, data: &[u8], start: usize, length: usize) -> bool {
    let mut found = vec![0; length];
    match file.read_exact_at(&mut found, start as u64) {
        Ok(()) => {
            assert!(
                found == data[start..start + length],
                "wrong data at {start}"
            );
            true
        }
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()));
            false
        }
    }
}

#[test]
fn damage_fails_where_it_is() {
    let (store, backups) = three(Format::Raw);
    let full = store.path().join(&backups[0].0).join("vda.raw");
    let (id, data) = &backups[2];
    let broken = File::options().write(true).open(&full).unwrap();
    broken
        .write_all_at(&[!data[9 * MIB]], 9 * MIB as u64)
        .unwrap();
    // Of two others, one has no manifest, and one no chain.
    let lost = store.incremental(id, data, &[]);
    let based = store.incremental(&lost, data, &[]);
    fs::write(store.path().join(&lost).join("manifest.json"), "{").unwrap();
    let Some(mounted) = Mounted::of(store.path()) else {
        return;
    };
    let file = File::open(mounted.file(id)).unwrap();
    for at in [9 * MIB, 9 * MIB + 8192, 10 * MIB - 4096] {
        assert!(!reads(&file, data, at, 4096), "{at}");
    }
    for at in [0, 3 * MIB, 5 * MIB, 8 * MIB - 65536] {
        assert!(reads(&file, data, at, 65536), "{at}");
    }
    drop(file);
    for id in [&lost, &based] {
        let directory = mounted.point.path().join(id);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
        assert!(!mounted.file(id).exists());
    }
    mounted.signal(Signal::TERM);
    let (code, told) = mounted.end();
    assert_eq!(code, Some(143));
    let said = |text: &str| {
        assert_eq!(told.matches(text).count(), 1, "{text}: {told}");
    };
    said(&format!("{} is damaged: ", full.display()));
    said(&format!("the devices of {lost} are not shown: "));
    said(&format!(
        "vda of {based} is not shown: the chain of {based} is broken"
    ));
}

#[test]
fn what_cannot_be_done_is_said() {
    let (store, _) = three(Format::Raw);
    let Some(mounted) = Mounted::of(store.path()) else {
        return;
    };
    let other = test_dir();
    fs::write(other.path().join("file"), "").unwrap();
    let refused = |backups: &Path, point: &Path, why: &str| {
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        let output = output(&["mount", &path(backups), &path(point)]);
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(
            (output.status.code(), output.stdout.len()),
            (Some(1), 0),
            "{told}"
        );
        assert!(told.contains(why) && told.lines().count() == 1, "{told}");
    };
    let backups = store.path();
    refused(backups, mounted.point.path(), "already (fuse.blksnap)");
    refused(backups, other.path(), "it is not empty");
    refused(backups, &other.path().join("file"), "it is no directory");
    refused(backups, &other.path().join("none"), "No such file");
    refused(other.path(), other.path(), "is no directory of backups");
    let before = Instant::now();
    mounted.signal(Signal::TERM);
    mounted.end();
    assert!(before.elapsed() < Duration::from_secs(20));
}

#[test]
fn qemu_serves_it_to_others() {
    let (store, backups) = three(Format::Raw);
    if Command::new("qemu-nbd").arg("--version").output().is_err() {
        eprintln!("skipped: there is no qemu-nbd");
        return;
    }
    let Some(mounted) = Mounted::of(store.path()) else {
        return;
    };
    let (id, data) = &backups[2];
    let other = test_dir();
    let (image, socket) = (other.path().join("image"), other.path().join("nbd"));
    fs::write(&image, data).unwrap();
    // As in blksnap-one-file.rst; it ends when its first client has gone.
    let server = Command::new("qemu-nbd")
        .args(["-r", "-f", "raw", "--fork", "-k"])
        .args([&socket, &mounted.file(id)])
        .status()
        .unwrap();
    assert!(server.success());
    let compared = Command::new("qemu-img")
        .args(["compare", "-f", "raw", "-F", "raw"])
        .arg(format!("nbd+unix:///?socket={}", socket.display()))
        .arg(&image)
        .output()
        .unwrap();
    assert!(compared.status.success(), "{compared:?}");
    mounted.signal(Signal::TERM);
    assert_eq!(mounted.end().0, Some(143));
}
