// SPDX-License-Identifier: GPL-2.0-or-later

//! Why the module is not loaded, if `modprobe blksnap` would not load it.
//!
//! What modprobe says is short (`Key was rejected by service`, `Operation not permitted`) and not what to
//! do. Nothing is loaded here: who has unloaded the module, and looks whether it has gone, would
//! have it again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::io::Errno;

const MODULES: &str = "/lib/modules";

/// What is known of the module file of the running kernel.
struct File {
    path: PathBuf,
    /// Of the kernel that it was built for; empty if that is not known.
    release: String,
    /// Whose key it was signed with; empty if it was not.
    signer: String,
}

/// What the running kernel asks of a module, and which keys it has.
struct Kernel {
    release: String,
    /// Why it takes none that is not signed.
    signed_only: Option<&'static str>,
    /// The keys as `/proc/keys` lists them.
    keys: String,
}

/// What to do, if this error is that there is no control device, and `modprobe` would not help.
pub fn trouble(error: &anyhow::Error) -> Option<String> {
    if !is_missing(error) {
        return None;
    }
    let kernel = Kernel::running()?;
    let modules = Path::new(MODULES);
    let Some(path) = find(modules, &kernel.release) else {
        return Some(not_installed(&kernel.release, &having(modules)));
    };
    let file = File {
        release: field(&path, "vermagic")
            .split(' ')
            .next()
            .unwrap_or_default()
            .to_owned(),
        signer: field(&path, "signer"),
        path,
    };
    refused(&kernel, &file)
}

/// Whether this error is that there is no control device.
pub fn is_missing(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        matches!(
            cause.downcast_ref(),
            Some(blksnap::Error::Open {
                errno: Errno::NOENT | Errno::NODEV | Errno::NXIO,
                ..
            })
        )
    })
}

impl Kernel {
    fn running() -> Option<Self> {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
        let lockdown = text("/sys/kernel/security/lockdown");
        let enforced = text("/sys/module/module/parameters/sig_enforce");
        Some(Self {
            release: release.trim().to_owned(),
            signed_only: if enforced.trim() == "Y" {
                Some("checks the signatures of modules")
            } else if lockdown.contains('[') && !lockdown.contains("[none]") {
                Some("is locked down, as with secure boot")
            } else {
                None
            },
            keys: text("/proc/keys"),
        })
    }
}

/// Where the module of that kernel is, as modprobe looks for it.
fn find(modules: &Path, release: &str) -> Option<PathBuf> {
    let directory = modules.join(release);
    let list = fs::read_to_string(directory.join("modules.dep")).ok()?;
    let files = list.lines().filter_map(|line| line.split(':').next());
    let mut ours = files.filter(|file| {
        let name = file.rsplit('/').next().unwrap_or(file);
        name == "blksnap.ko" || name.starts_with("blksnap.ko.")
    });
    // An absolute path stays what it is.
    ours.next().map(|file| directory.join(file))
}

/// The kernels that have the module.
fn having(modules: &Path) -> Vec<String> {
    let entries = fs::read_dir(modules).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut having: Vec<_> = names
        .filter(|release| find(modules, release).is_some())
        .collect();
    having.sort();
    having
}

/// What `modinfo` tells of a module file; empty if that is nothing.
fn field(path: &Path, name: &str) -> String {
    let output = Command::new("modinfo")
        .args(["-F", name])
        .arg(path)
        .output();
    output.map_or_else(
        |_| String::new(),
        |output| {
            let text = String::from_utf8_lossy(&output.stdout);
            text.lines().next().unwrap_or_default().trim().to_owned()
        },
    )
}

fn not_installed(release: &str, others: &[String]) -> String {
    let headers = format!("install blksnap-dkms and linux-headers-{release}");
    if others.is_empty() {
        format!("the running kernel {release} has no blksnap module: {headers}")
    } else {
        format!(
            "the running kernel {release} has no blksnap module, only {} has: boot that one, or {headers} \
             (`dkms status blksnap` tells what was built)",
            others.join(", ")
        )
    }
}

/// Why the kernel would not take the file, if that can be told beforehand.
fn refused(kernel: &Kernel, file: &File) -> Option<String> {
    let (path, running, signer) = (file.path.display(), &kernel.release, &file.signer);
    if !file.release.is_empty() && file.release != *running {
        return Some(format!(
            "{path} was built for the kernel {}, and {running} is running: remove it, and let DKMS build it \
             again (`dkms autoinstall -k {running}`)",
            file.release
        ));
    }
    let why = kernel.signed_only?;
    if signer.is_empty() {
        return Some(format!(
            "the kernel {why} and takes signed modules only, and {path} is not signed: let DKMS build it again \
             (it needs openssl for its key), and see blksnap-install in the documentation"
        ));
    }
    let known = kernel
        .keys
        .lines()
        .any(|line| line.contains(&format!(" {signer}: ")));
    (!known).then(|| {
        format!(
            "the kernel {why}, and does not know the key that {path} is signed with ({signer}): `mokutil --import \
             /var/lib/dkms/mok.pub`, reboot, and enrol the key in the blue screen that comes then"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(signed_only: Option<&'static str>, keys: &str) -> Kernel {
        Kernel {
            release: "7.3.4+deb13-amd64".into(),
            signed_only,
            keys: keys.into(),
        }
    }

    fn file(release: &str, signer: &str) -> File {
        File {
            path: "/lib/modules/R/updates/dkms/blksnap.ko.xz".into(),
            release: release.into(),
            signer: signer.into(),
        }
    }

    #[test]
    fn the_module_is_found_where_modprobe_finds_it() {
        let modules = tempfile::tempdir().unwrap();
        for (release, list) in [
            (
                "7.3.4",
                "kernel/a/loop.ko.xz:\nupdates/dkms/blksnap.ko.xz: kernel/a/loop.ko.xz\n",
            ),
            (
                "6.12",
                "kernel/a/loop.ko:\nkernel/a/not-blksnap.ko: kernel/blksnap.ko\n",
            ),
        ] {
            fs::create_dir(modules.path().join(release)).unwrap();
            fs::write(modules.path().join(release).join("modules.dep"), list).unwrap();
        }
        let found = find(modules.path(), "7.3.4").unwrap();
        assert!(
            found.ends_with("7.3.4/updates/dkms/blksnap.ko.xz"),
            "{found:?}"
        );
        assert_eq!(find(modules.path(), "6.12"), None);
        assert_eq!(find(modules.path(), "5.10"), None);
        assert_eq!(having(modules.path()), ["7.3.4"]);

        let text = not_installed("6.12", &having(modules.path()));
        assert!(text.contains("6.12 has no blksnap module, only 7.3.4 has"));
        assert!(text.contains("install blksnap-dkms and linux-headers-6.12"));
        assert!(not_installed("6.12", &[]).contains("no blksnap module: install"));
    }

    #[test]
    fn a_kernel_that_takes_any_module_takes_one_for_it() {
        let open = kernel(None, "");
        assert_eq!(refused(&open, &file("7.3.4+deb13-amd64", "")), None);
        assert_eq!(refused(&open, &file("", "")), None);
        let text = refused(&open, &file("7.3.5", "")).unwrap();
        assert!(text.contains("built for the kernel 7.3.5, and 7.3.4+deb13-amd64 is running"));
    }

    #[test]
    fn a_locked_kernel_wants_a_signature_by_a_key_that_it_knows() {
        let keys = "1e0f I------ 1 perm 1f030000 0 0 asymmetri DKMS module signing key: 9f0a: X509.rsa 9f []\n";
        let locked = kernel(Some("is locked down"), keys);
        let release = "7.3.4+deb13-amd64";
        let text = refused(&locked, &file(release, "")).unwrap();
        assert!(text.contains("is not signed"), "{text}");
        assert_eq!(
            refused(&locked, &file(release, "DKMS module signing key")),
            None
        );
        let text = refused(&locked, &file(release, "another key")).unwrap();
        assert!(
            text.contains("(another key): `mokutil --import /var/lib/dkms/mok.pub`"),
            "{text}"
        );
    }

    #[test]
    fn other_errors_are_left_alone() {
        assert_eq!(trouble(&anyhow::anyhow!("no space left")), None);
        let open = |errno| {
            anyhow::Error::new(blksnap::Error::Open {
                path: "/dev/blksnap".into(),
                errno,
            })
        };
        assert_eq!(trouble(&open(Errno::ACCESS)), None);
    }
}
