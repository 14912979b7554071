// SPDX-License-Identifier: MIT OR Apache-2.0

//! A session as C has it: options and devices are gathered until the take, which makes the Rust
//! session.

use std::ffi::{CString, c_char, c_int};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use blksnap_rs::{DevId, Interface, SessionOptions};
use rustix::io::Errno;

use crate::failure::{Failure, guard};
use crate::pointer::{Out, read, text};
use crate::types::{Event, Image, Uuid};

/// A snapshot of some devices, its storage looked after.
pub struct Session {
    state: RwLock<State>,
}

/// How far it is.
struct State {
    options: SessionOptions,
    devices: Vec<DevId>,
    taken: Option<Taken>,
}

/// What there is after the take.
pub struct Taken {
    pub session: blksnap_rs::Session,
    /// The paths of the images, as C wants them.
    paths: Vec<CString>,
}

impl Session {
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what only counts before the take.
    fn prepare(
        &self,
        change: impl FnOnce(&mut State) -> Result<(), Failure>,
    ) -> Result<c_int, Failure> {
        let taken = || Failure::new(Errno::ALREADY, "the snapshot was taken before");
        // Others may be waiting for an event, and are not to be waited for.
        if self.read().taken.is_some() {
            return Err(taken());
        }
        let mut state = self.write();
        if state.taken.is_some() {
            return Err(taken());
        }
        change(&mut state)?;
        Ok(0)
    }

    /// Uses what there is only after the take.
    pub fn with<T>(&self, using: impl FnOnce(&Taken) -> Result<T, Failure>) -> Result<T, Failure> {
        match &self.read().taken {
            Some(taken) => using(taken),
            None => Err(Failure::invalid("the snapshot has not been taken yet")),
        }
    }
}

impl Taken {
    /// A captured device by its place, and its image.
    pub fn image(&self, index: usize) -> Result<&blksnap_rs::Image, Failure> {
        let images = self.session.images();
        images.get(index).ok_or_else(|| {
            let count = images.len();
            Failure::invalid(format!(
                "there is no device {index} in the session, which has {count}"
            ))
        })
    }
}

/// Makes a session without devices. Nothing happens yet.
///
/// The difference storage will be in the directory `storage`, in a file without a name; or in the file,
/// or on the device, with this very path, whose contents are lost. Best on a file system that is not
/// captured; if it is, that must be ext4 or xfs, and all the storage is allocated before the take. With
/// an older kernel module it must be ext4 or xfs in any case, and what is no directory is the beginning
/// of the names of files.
///
/// # Safety
///
/// `storage` is NULL or a string; `session` is NULL or good for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blksnap_session_create(
    storage: *const c_char,
    session: *mut *mut Session,
) -> c_int {
    guard(|| {
        // SAFETY: By the contract of this function.
        let storage = unsafe { text(storage, "storage") }?;
        // SAFETY: By the contract of this function.
        let session = unsafe { Out::new(session, "session") }?;
        let state = State {
            options: SessionOptions::in_directory(storage),
            devices: Vec::new(),
            taken: None,
        };
        let state = RwLock::new(state);
        session.fill(Box::into_raw(Box::new(Session { state })));
        Ok(0)
    })
}

/// Sets how many bytes of storage are given at most; the snapshot is lost when they are not enough.
/// -EALREADY after the take.
///
/// # Safety
///
/// `session` is NULL or a session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blksnap_session_set_limit(session: *const Session, bytes: u64) -> c_int {
    guard(|| {
        // SAFETY: By the contract of this function.
        let session = unsafe { read(session, "session") }?;
        session.prepare(|state| {
            state.options.limit = Some(bytes);
            Ok(())
        })
    })
}

/// Sets how many bytes of storage are given at a time, at least; the kernel may ask for more. Of the
/// interface of 2022 only. -EALREADY after the take.
///
/// # Safety
///
/// `session` is NULL or a session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blksnap_session_set_portion(session: *const Session, bytes: u64) -> c_int {
    guard(|| {
        // SAFETY: By the contract of this function.
        let session = unsafe { read(session, "session") }?;
        session.prepare(|state| {
            state.options.portion = bytes;
            Ok(())
        })
    })
}

/// Lets all the storage be allocated before the take, wherever it is: for when another snapshot may
/// capture its file system meanwhile. -EALREADY after the take.
///
/// # Safety
///
/// `session` is NULL or a session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blksnap_session_set_reserve(
    session: *const Session,
    reserve: bool,
) -> c_int {
    guard(|| {
        // SAFETY: By the contract of this function.
        let session = unsafe { read(session, "session") }?;
        session.prepare(|state| {
            state.options.reserve = reserve;
            Ok(())
        })
    })
}

/// Sets the control interface of the kernel module that is used: 1 is that of 2022, 2 that of 2025, and
/// 0, as at first, the second where the module has it. -EINVAL for other numbers, -EALREADY after the
/// take.
///
/// # Safety
///
/// `session` is NULL or a session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blksnap_session_set_interface(
    session: *const Session,
    number: c_int,
) -> c_int {
    guard(|| {
        // SAFETY: By the contract of this function.
        let session = unsafe { read(session, "session") }?;
        let interface = match number {
            0 => None,
            1 => Some(Interface::First),
            2 => Some(Interface::Second),
            _ => return Err(Failure::invalid(format!("there is no interface {number}"))),
        };
        session.prepare(|state| {
            state.options.interface = interface;
            Ok(())
        })
    })
}

/// Adds a block device, by its path or as MAJOR:MINOR. -ENOTBLK if it is something else, -EEXIST if
/// it was added before, -EALREADY after the take.
///
/// # Safety
///
/// `session` is NULL or a session; `device` is NULL or a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blksnap_session_add(
    session: *const Session,
    device: *const c_char,
) -> c_int {
    guard(|| {
        // SAFETY: By the contract of this function.
        let session = unsafe { read(session, "session") }?;
        // SAFETY: By the contract of this function.
        let name = unsafe { text(device, "device") }?;
        session.prepare(|state| {
            let device = DevId::resolve(name)?;
            if state.devices.contains(&device) {
                let text = format!("{} was added before", Path::new(name).display());
                return Err(Failure::new(Errno::EXIST, text));
            }
            state.devices.push(device);
            Ok(())
        })
    })
}

/// Captures all devices at one instant. From now on the images are there, and the session gives
/// the snapshot storage by itself.
///
/// Before that, cleans up after sessions with the same storage directory whose processes were
/// killed. Blocks while storage is allocated and the file systems are written back. If it fails,
/// nothing is left, and it may be called again. -EALREADY after the take.
///
/// # Safety
///
/// `session` is NULL or a session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blksnap_session_take(session: *const Session) -> c_int {
    guard(|| {
        // SAFETY: By the contract of this function.
        let session = unsafe { read(session, "session") }?;
        session.prepare(|state| {
            if state.devices.is_empty() {
                return Err(Failure::invalid("no device was added to the session"));
            }
            let options = state.options.clone();
            let mut session = blksnap_rs::Session::create(&state.devices, options)?;
            session.take()?;
            let images = session.images().iter();
            let paths = images.map(|image| CString::new(image.path.as_os_str().as_bytes()));
            let paths = paths.map(Result::unwrap_or_default).collect();
            state.taken = Some(Taken { session, paths });
            Ok(())
        })
    })
}

/// Tells the identifier of the snapshot, as sysfs and the other commands of the module know it.
///
/// # Safety
///
/// `session` is NULL or a session; `id` is NULL or good for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blksnap_session_id(session: *const Session, id: *mut Uuid) -> c_int {
    guard(|| {
        // SAFETY: By the contract of this function.
        let session = unsafe { read(session, "session") }?;
        // SAFETY: By the contract of this function.
        let id = unsafe { Out::new(id, "id") }?;
        let bytes = session.with(|taken| Ok(taken.session.id().to_raw()))?;
        id.fill(Uuid { bytes });
        Ok(0)
    })
}

/// Tells an image: that of the device that was added as number `index`, from 0 on. -EINVAL if there
/// are not so many.
///
/// # Safety
///
/// `session` is NULL or a session; `image` is NULL or good for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blksnap_session_image(
    session: *const Session,
    index: usize,
    image: *mut Image,
) -> c_int {
    guard(|| {
        // SAFETY: By the contract of this function.
        let session = unsafe { read(session, "session") }?;
        // SAFETY: By the contract of this function.
        let image = unsafe { Out::new(image, "image") }?;
        let found = session.with(|taken| {
            let found = taken.image(index)?;
            Ok(Image {
                original: found.original.into(),
                device: found.device.into(),
                path: taken.paths[index].as_ptr(),
            })
        })?;
        image.fill(found);
        Ok(0)
    })
}

/// 0 while the snapshot is good. If it is lost, a negative errno for ever: -ENOSPC when its storage
/// was full, -ENODEV when somebody else has destroyed it. Never waits.
///
/// What was read from the images before the loss is right. Ask at the end of a backup: it is good
/// if this gives 0.
///
/// # Safety
///
/// `session` is NULL or a session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blksnap_session_check(session: *const Session) -> c_int {
    guard(|| {
        // SAFETY: By the contract of this function.
        let session = unsafe { read(session, "session") }?;
        session.with(|taken| Ok(taken.session.check()?))?;
        Ok(0)
    })
}

/// As blksnap_session_check(), but waits up to half a second for bad news: for use after a read of
/// an image has failed, which is either the original's own error, or the sign of a lost snapshot.
///
/// # Safety
///
/// `session` is NULL or a session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blksnap_session_check_after_error(session: *const Session) -> c_int {
    guard(|| {
        // SAFETY: By the contract of this function.
        let session = unsafe { read(session, "session") }?;
        session.with(|taken| Ok(taken.session.check_after_error()?))?;
        Ok(0)
    })
}

/// A file descriptor that can be read (POLLIN) as long as blksnap_session_next_event() has
/// something to give: for poll(), epoll and the like. It belongs to the session: do not read, write
/// or close it.
///
/// # Safety
///
/// `session` is NULL or a session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blksnap_session_fd(session: *const Session) -> c_int {
    guard(|| {
        // SAFETY: By the contract of this function.
        let session = unsafe { read(session, "session") }?;
        session.with(|taken| Ok(taken.session.as_fd().as_raw_fd()))
    })
}

/// Fetches the oldest event; waits for one so many milliseconds, not at all if that is 0, and
/// without end if it is negative. 1 if there was an event, 0 if the time is over. Each event is
/// given once.
///
/// # Safety
///
/// `session` is NULL or a session; `event` is NULL or good for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blksnap_session_next_event(
    session: *const Session,
    timeout_ms: c_int,
    event: *mut Event,
) -> c_int {
    guard(|| {
        // SAFETY: By the contract of this function.
        let session = unsafe { read(session, "session") }?;
        // SAFETY: By the contract of this function.
        let event = unsafe { Out::new(event, "event") }?;
        let timeout = u64::try_from(timeout_ms);
        let timeout = timeout.map_or(Duration::MAX, Duration::from_millis);
        let found = session.with(|taken| Ok(taken.session.wait_event(timeout)))?;
        Ok(match found {
            Some(found) => {
                event.fill(found.into());
                1
            }
            None => 0,
        })
    })
}

/// Ends a session: the snapshot and its images go, the storage files are removed. NULL is fine. The
/// session must not be used any more, even if this fails, which tells that something was left
/// behind.
///
/// # Safety
///
/// `session` is NULL or a session that nobody uses now or later.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blksnap_session_destroy(session: *mut Session) -> c_int {
    guard(|| {
        if session.is_null() {
            return Ok(0);
        }
        // SAFETY: By the contract of this function it was made by `blksnap_session_create`, from a
        // box, and nobody uses it.
        let session = unsafe { Box::from_raw(session) };
        let state = session.state.into_inner();
        let state = state.unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = state.taken {
            taken.session.destroy()?;
        }
        Ok(0)
    })
}
