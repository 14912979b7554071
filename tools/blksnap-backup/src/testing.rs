// SPDX-License-Identifier: GPL-2.0-or-later

//! For tests: backups made of bytes in place of a snapshot's images.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use uuid::Uuid;

use crate::format::{Base, Format};
use crate::hardware::Hardware;
use crate::manifest::{Device, Kind, Manifest};
use crate::record::Recorder;
use crate::repository::{Draft, Repository};
use crate::watch::Nobody;

/// What was written to something like standard output.
#[derive(Clone, Default)]
pub struct Got(pub Arc<Mutex<Vec<u8>>>);

impl io::Write for Got {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A directory of backups of one device, `vda`.
pub struct Store {
    dir: tempfile::TempDir,
    size: u64,
    format: Format,
    compress: bool,
    /// Those of change tracking, by the names of devices.
    generations: RefCell<BTreeMap<String, u128>>,
    now: Cell<u64>,
}

impl Store {
    /// An empty one, for a device of `size` bytes.
    pub fn new(size: u64) -> Self {
        Self::with(size, Format::Raw)
    }

    /// The same, with a format of files.
    pub fn with(size: u64, format: Format) -> Self {
        Self {
            dir: test_dir(),
            size,
            format,
            compress: false,
            generations: RefCell::default(),
            now: Cell::new(0),
        }
    }

    /// The same, of compressed images of QEMU.
    pub fn compressed(size: u64) -> Self {
        Self {
            compress: true,
            ..Self::with(size, Format::Qcow2)
        }
    }

    /// From now on, backups are taken so many seconds after 1970.
    pub fn set_time(&self, seconds: u64) {
        self.now.set(seconds);
    }

    /// The directory of backups.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Makes a full backup, and gives its name.
    pub fn full(&self, data: &[u8]) -> String {
        self.full_of("vda", data)
    }

    /// The same, of a device of that name.
    pub fn full_of(&self, name: &str, data: &[u8]) -> String {
        self.make(None, &[Made::full(name, data)])
    }

    /// Makes an incremental backup of what changed, and gives its name.
    pub fn incremental(&self, base: &str, data: &[u8], changed: &[Range<u64>]) -> String {
        let made = Made {
            name: "vda",
            kind: Kind::Incremental,
            data,
            changed,
        };
        self.make(Some(base), &[made])
    }

    /// Makes a backup of what differs from the last one, after tracking has begun anew, and gives its
    /// name.
    pub fn compared(&self, base: &str, data: &[u8], differing: &[Range<u64>]) -> String {
        let made = Made {
            name: "vda",
            kind: Kind::Compared,
            data,
            changed: differing,
        };
        self.make(Some(base), &[made])
    }

    /// Makes a backup of several devices, and gives its name.
    pub fn make(&self, base: Option<&str>, devices: &[Made<'_>]) -> String {
        let repository = Repository::create(self.path()).unwrap();
        let number = repository.ids().unwrap().len() as u8 + 1;
        let taken = UNIX_EPOCH + Duration::from_secs(1 << 30);
        let id = repository.next_id(taken, Uuid::from_u128(u128::from(number) << 120));
        let id = id.unwrap();
        let draft = Draft::new(&repository, id.clone()).unwrap();
        let base_dir = base.map(|base| repository.dir(base));
        let entries = devices.iter().map(|made| {
            let entry = Device {
                number,
                ..self.entry(made)
            };
            let base_dir = base_dir.as_deref().filter(|_| made.kind != Kind::Full);
            let base = base_dir.map(|dir| Base::new(dir, &self.file_in(dir, made.name)));
            let recorder = Recorder::create(draft.path(), &id, entry, base.as_ref(), self.compress);
            let mut recorder = recorder.unwrap();
            let image = self.path().join(".image");
            fs::write(&image, made.data).unwrap();
            let all = 0..self.size;
            let changed = match made.kind {
                Kind::Full => std::slice::from_ref(&all),
                _ => made.changed,
            };
            let changed = changed.iter().cloned().collect();
            recorder.copy(&image, changed, &Nobody, || Ok(())).unwrap();
            fs::remove_file(&image).unwrap();
            recorder.finish().unwrap()
        });
        let taken = [self.now.get() * 1_000_000_000; 2];
        let mut manifest = Manifest::new(id.clone(), Uuid::nil(), taken, entries.collect());
        manifest.base = base.map(str::to_owned);
        draft.commit(&manifest).unwrap();
        id
    }

    /// The name of the file of a device in the directory of a backup.
    fn file_in(&self, dir: &Path, name: &str) -> String {
        let manifest = Manifest::read(dir).unwrap();
        manifest.device(name).unwrap().file.clone()
    }

    fn entry(&self, made: &Made<'_>) -> Device {
        let mut generations = self.generations.borrow_mut();
        let of_name = made
            .name
            .bytes()
            .fold(0, |all, byte| all << 8 | u128::from(byte));
        let generation = generations.entry(made.name.to_owned());
        let generation = generation.or_insert(match made.name {
            "vda" => 2,
            _ => of_name << 64,
        });
        if made.kind == Kind::Compared {
            *generation += 1;
        }
        let entry = Device {
            size: self.size,
            generation: Uuid::from_u128(*generation),
            kind: made.kind,
            base_device: (made.kind == Kind::Compared).then(|| made.name.to_owned()),
            ..device(made.name)
        };
        entry.stored_as(self.format)
    }
}

/// What is made of one device.
pub struct Made<'a> {
    /// Its name.
    pub name: &'a str,
    /// How.
    pub kind: Kind,
    /// What is on it.
    pub data: &'a [u8],
    /// What of that is copied, if not all.
    pub changed: &'a [Range<u64>],
}

impl<'a> Made<'a> {
    /// All of it.
    pub fn full(name: &'a str, data: &'a [u8]) -> Self {
        Self {
            name,
            kind: Kind::Full,
            data,
            changed: &[],
        }
    }
}

/// A device of a full backup.
pub fn device(name: &str) -> Device {
    Device {
        name: name.into(),
        path: Path::new("/dev").join(name),
        stable: Vec::new(),
        hardware: Hardware::default(),
        size: 4096,
        generation: Uuid::from_u128(2),
        number: 3,
        block_size: 65536,
        kind: Kind::Full,
        reason: "asked for".into(),
        base_device: None,
        file_format: Format::Raw,
        file: format!("{name}.raw"),
        file_size: 4096,
        extents: format!("{name}.extents.jsonl"),
        extents_blake3: blake3::hash(b"").to_hex().to_string(),
        data_bytes: 0,
        zero_bytes: 0,
        lost: Vec::new(),
        unused_bytes: 0,
        unused: Vec::new(),
    }
}

/// A directory in memory, if there is such a place: the tests wait for the disk often.
pub fn test_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

/// Numbers that look like chance, and are the same each time.
pub fn numbers(seed: u64) -> impl Iterator<Item = usize> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) as usize
    })
}

/// Bytes of such numbers.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    numbers(seed)
        .take(length)
        .map(|number| number as u8)
        .collect()
}

/// Bytes in the device of [`three`].
pub const SIZE: usize = 12 * MIB;

const MIB: usize = 1 << 20;

/// A full backup and two that are based on it, with all of them as they are to be read.
pub fn three(format: Format) -> (Store, Vec<(String, Vec<u8>)>) {
    three_in(Store::with(SIZE as u64, format))
}

/// The same, in an empty store for that size.
pub fn three_in(store: Store) -> (Store, Vec<(String, Vec<u8>)>) {
    let mut data = noise(1, SIZE);
    // What can be compressed, and what can't.
    data[MIB..2 * MIB].fill(7);
    data[2 * MIB..5 * MIB].fill(0);
    let mut backups = vec![(store.full(&data), data.clone())];
    for (round, start) in [(2, MIB + 65536), (3, 4 * MIB)] {
        let changed = start..start + 2 * MIB;
        data[changed.clone()].copy_from_slice(&noise(round, changed.len()));
        data[changed.start + MIB..][..128 << 10].fill(0);
        let place = changed.start as u64..changed.end as u64;
        let base = backups.last().unwrap().0.clone();
        let id = store.incremental(&base, &data, &[place]);
        backups.push((id, data.clone()));
    }
    (store, backups)
}
