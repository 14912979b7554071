// SPDX-License-Identifier: GPL-2.0-or-later

//! Backups of which it is not known what they are: they may have to be kept, and may need others.

use super::*;

/// Makes a manifest one that can't be read, whoever tries: the file is a link to itself.
fn hide(store: &Store, id: &str) -> impl FnOnce() + use<> {
    let path = store.path().join(id).join("manifest.json");
    let hidden = path.with_file_name("hidden");
    std::fs::rename(&path, &hidden).unwrap();
    std::os::unix::fs::symlink("manifest.json", &path).unwrap();
    move || std::fs::rename(hidden, path).unwrap()
}

fn refused(store: &Store, why: &str) {
    let signals = Signals::catch().unwrap();
    for dry_run in [true, false] {
        let how = How {
            dry_run,
            ..keeping(2)
        };
        let error = prune(store.path(), how, &signals).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains("nothing was dropped"), "{error}");
        assert!(
            error.contains(why) && error.contains("remove its directory"),
            "{error}"
        );
    }
}

#[test]
fn one_that_cannot_be_read_now_is_not_dropped() {
    let signals = Signals::catch().unwrap();
    for index in [0, 4, 7] {
        let (store, all) = chain(Format::Raw);
        let show = hide(&store, &all[index].0);
        refused(&store, "cannot read");
        show();
        check(&store, &all, &all, "it can be read again");
        let report = prune(store.path(), keeping(2), &signals).unwrap();
        assert_eq!(report.dropped.len(), all.len() - 2);
    }
}

#[test]
fn one_of_a_newer_program_or_another_directory_is_not_dropped() {
    let (store, all) = chain(Format::Raw);
    let path = store.path().join(&all[0].0).join("manifest.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let newer = text.replace("\"version\": 1", "\"version\": 99");
    assert_ne!(newer, text);
    std::fs::write(&path, newer).unwrap();
    refused(&store, "newer blksnap");
    std::fs::write(&path, &text).unwrap();
    let other = store.path().join(all[0].0.replace("2004", "2003"));
    std::fs::rename(store.path().join(&all[0].0), &other).unwrap();
    refused(&store, "rename that back");
    assert!(other.exists());
    std::fs::rename(&other, store.path().join(&all[0].0)).unwrap();
    check(&store, &all, &all, "as it was");
}

#[test]
fn a_damaged_one_goes_if_it_is_older() {
    let signals = Signals::catch().unwrap();
    // The last is no UTF-8: it was read.
    for text in ["", "{", "\u{0}", "{}"]
        .map(str::as_bytes)
        .into_iter()
        .chain([&[0xff, 0xfe][..]])
    {
        let (store, all) = chain(Format::Raw);
        std::fs::write(store.path().join(&all[0].0).join("manifest.json"), text).unwrap();
        let report = prune(store.path(), keeping(2), &signals).unwrap();
        assert_eq!(report.dropped.len(), all.len() - 2);
        check(
            &store,
            &all,
            &all[all.len() - 2..],
            "without the damaged one",
        );
    }
}

/// Between two looks at a manifest a file system may fail.
#[test]
fn what_one_needs_that_cannot_be_read_any_more_stays() {
    let (store, all) = chain(Format::Raw);
    let (repository, _) = Repository::read(store.path()).unwrap();
    let dropped: Vec<_> = all[..7].iter().map(|(id, _)| id.clone()).collect();
    let newest = &all[7].0;
    let manifest = repository.manifest(newest).unwrap();
    let staying = Staying::of(&repository, [newest.clone()]);
    assert_eq!(alone(&staying, &dropped).unwrap().len(), 2);
    let show = hide(&store, newest);
    alone(&staying, &dropped).unwrap_err();
    // Two are based on it.
    let full = repository.dir(&all[2].0);
    let both = Staying::of(&repository, [&all[3].0, newest].map(Clone::clone));
    let older = repository.manifest(&all[3].0).unwrap();
    both.shared(&older, &full).unwrap_err();
    show();

    // Dropped, and not merged yet.
    for id in &dropped {
        let mut manifest = repository.manifest(id).unwrap();
        manifest.state = State::Dropped;
        manifest.write(&repository.dir(id)).unwrap();
    }
    let show = hide(&store, newest);
    remove_merged(&repository).unwrap_err();
    show();
    assert_eq!(repository.ids().unwrap().len(), all.len());
    remove_merged(&repository).unwrap();
    assert_eq!(repository.ids().unwrap().len(), all.len() - 2);
    // Of the newest, the files of a dropped one are missing.
    let file = repository.dir(&all[4].0).join("vda.raw-delta");
    std::fs::remove_file(file).unwrap();
    assert!(!staying.is_based_well(&manifest));
    alone(&staying, &dropped[2..]).unwrap_err();
}
