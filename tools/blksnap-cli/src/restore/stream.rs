// SPDX-License-Identifier: GPL-2.0-or-later

//! A device of a backup on standard output. It is read in order, through all layers, by several threads;
//! what is damaged ends it, and the stream is shorter than the device then.

use std::io::Write;
use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use blksnap_backup::format::Writer;
use blksnap_backup::format::raw::RawStream;
use blksnap_backup::{
    Buffer, Cache, Chain, Device, Image, Manifest, Repository, Watch, pieces, pipeline,
};

use super::{How, lost_bytes, remark_lost, which};
use crate::args;
use crate::opened;
use crate::output;
use crate::progress::Progress;
use crate::rate::Pace;
use crate::signals::Signals;
use crate::size::Size;
use crate::stdout::{self, Stdout};

/// Bytes of data that are kept: extents that go on in the next piece.
const KEPT: u64 = 64 << 20;

/// Does so if standard output is the target; gives whether it is.
pub fn run(args: &args::Restore, how: How, signals: &Signals) -> Result<bool> {
    // It may as well be the end of the name of a file.
    if !args
        .to
        .iter()
        .any(|text| text == "-" || text.ends_with("=-"))
    {
        return Ok(false);
    }
    let (repository, id) = Repository::read(&args.backup)?;
    let manifest = repository.find(id.as_deref())?;
    let [target] = args.to.as_slice() else {
        // The message is that for several targets.
        return Ok(false);
    };
    let (device, "-") = which(&manifest, target)? else {
        return Ok(false);
    };
    ensure!(
        !args.json && !args.keep_going,
        "--json and --keep-going need a file or a device: standard output is the data"
    );
    opened::remark(&repository)?;
    let out = Box::new(Stdout::open(signals)?);
    write(&repository, &manifest, device, out, how, signals)?;
    Stdout::write_back()?;
    remark_lost(&device.name, lost_bytes(device));
    Ok(true)
}

/// Writes a device.
fn write(
    repository: &Repository,
    manifest: &Manifest,
    device: &Device,
    out: Box<dyn Write + Send>,
    how: How,
    signals: &Signals,
) -> Result<()> {
    let failed = || format!("cannot restore {}", device.name);
    let chain = Chain::open(repository, manifest, device).with_context(failed)?;
    let what = format!("{} of {}", device.name, manifest.id);
    if how.dry_run {
        output::remark(format!("{what} would be written to {}", stdout::NAME));
        return Ok(());
    }
    let image = Image::new(chain, Arc::new(Cache::new(KEPT)?));
    let pace = Pace::new(how.rate);
    let progress = Progress::start(format!("{what}: writing"), device.size, signals).at(&pace);
    let mut stream = RawStream::new(out, stdout::NAME, device.size);
    let start = || {
        Ok(|buffer: &mut Buffer, place: &Range<u64>| {
            let length = (place.end - place.start) as usize;
            image.read(place.start, &mut buffer.bytes_mut()[..length])
        })
    };
    let all = pieces(std::iter::once(0..device.size)).map(Ok);
    let written = pipeline(all, start, &progress, |buffer, place, ()| {
        let length = place.end - place.start;
        stream.write(place.start, &buffer.bytes()[..length as usize])?;
        progress.advance(length);
        Ok(())
    });
    // A write that was given up is no more than that.
    written.map_err(|error| signals.check().err().map_or(error, Into::into))?;
    stream.finish()?;
    progress.finish();
    output::remark(format!(
        "{what}: {} written to {}",
        Size(device.size),
        stdout::NAME
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use blksnap_backup::testing::{Got, SIZE, Store, three, three_in};

    use super::*;

    fn streamed(store: &Store, id: &str, signals: &Signals) -> (Vec<u8>, Result<()>) {
        let (repository, _) = Repository::read(store.path()).unwrap();
        let manifest = repository.manifest(id).unwrap();
        let got = Got::default();
        let device = &manifest.devices[0];
        let out = Box::new(got.clone());
        let how = How::default();
        let done = write(&repository, &manifest, device, out, how, signals);
        (got.0.lock().unwrap().clone(), done)
    }

    #[test]
    fn each_backup_of_a_chain_is_streamed() {
        let signals = Signals::catch().unwrap();
        for (store, backups) in [
            three(blksnap_backup::Format::Raw),
            three_in(Store::compressed(SIZE as u64)),
        ] {
            for (id, data) in &backups {
                let (got, done) = streamed(&store, id, &signals);
                done.unwrap();
                assert!(got == *data, "{id}");
            }
        }
    }

    #[test]
    fn one_that_fails_is_shorter() {
        let (store, backups) = three(blksnap_backup::Format::Raw);
        let raw = store.path().join(&backups[0].0).join("vda.raw");
        let mut bytes = std::fs::read(&raw).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&raw, bytes).unwrap();
        let signals = Signals::catch().unwrap();
        let (got, done) = streamed(&store, &backups[2].0, &signals);
        let error = format!("{:#}", done.unwrap_err());
        assert!(error.contains("vda.raw is damaged"), "{error}");
        assert!(got.len() < SIZE);
        let signals = Signals::after(2);
        let (_, done) = streamed(&store, &backups[2].0, &signals);
        assert!(done.unwrap_err().is::<crate::signals::Interrupted>());
    }
}
