// SPDX-License-Identifier: MIT OR Apache-2.0

//! Errors as C has them: a negative errno, and the text for people beside it.

use std::cell::RefCell;
use std::ffi::{CString, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};

use blksnap_rs::Error;
use rustix::io::Errno;

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// Why a call failed.
#[derive(Debug)]
pub struct Failure {
    errno: Errno,
    text: String,
}

impl Failure {
    pub fn new(errno: Errno, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { errno, text }
    }

    /// An argument makes no sense.
    pub fn invalid(text: impl Into<String>) -> Self {
        Self::new(Errno::INVAL, text)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let errno = match &error {
            Error::File { cause, .. } => Errno::from_io_error(cause),
            Error::NotBlockDevice(_) => Some(Errno::NOTBLK),
            Error::Storage { .. } => Some(Errno::OPNOTSUPP),
            Error::Gone(_) => Some(Errno::NODEV),
            error => error.errno(),
        };
        Self::new(errno.unwrap_or(Errno::IO), error.to_string())
    }
}

/// Keeps the text for `blksnap_last_error()`.
fn remember(text: String) {
    let bytes: Vec<u8> = text.into_bytes().into_iter().filter(|&b| b != 0).collect();
    // While a thread ends there may be no place for it any more.
    let _ = LAST.try_with(|last| *last.borrow_mut() = CString::new(bytes).unwrap_or_default());
}

/// Does what a function is to do, and gives its result as C has it.
pub fn guard(run: impl FnOnce() -> Result<c_int, Failure>) -> c_int {
    // After a panic nothing is looked at that it may have left halfway: the locks of the Rust
    // library hold across it, and a session that was being taken is given up as a whole.
    let failure = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(value)) => return value,
        Ok(Err(failure)) => failure,
        Err(panic) => {
            let said = panic.downcast_ref::<&str>().copied();
            let said = said.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
            let text = format!("a bug in libblksnap: {}", said.unwrap_or("it panicked"));
            Failure::new(Errno::NOTRECOVERABLE, text)
        }
    };
    remember(failure.text);
    -failure.errno.raw_os_error()
}

/// What went wrong in the last call of this thread that failed, for people; an empty string if none
/// did. Never NULL. Valid until the next call that fails in this thread.
#[unsafe(no_mangle)]
pub extern "C" fn blksnap_last_error() -> *const c_char {
    let text = LAST.try_with(|last| last.borrow().as_ptr());
    text.unwrap_or(c"".as_ptr())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    fn last() -> String {
        // SAFETY: It is a string, and nothing fails in this thread meanwhile.
        let text = unsafe { CStr::from_ptr(blksnap_last_error()) };
        text.to_str().unwrap().into()
    }

    #[test]
    fn a_failure_is_a_number_and_a_text_of_this_thread() {
        assert_eq!(last(), "");
        assert_eq!(guard(|| Ok(7)), 7);
        let failed = guard(|| Err(Failure::invalid("no \0such thing")));
        assert_eq!(failed, -22);
        assert_eq!(last(), "no such thing");
        std::thread::spawn(|| assert_eq!(last(), ""))
            .join()
            .unwrap();
    }

    #[test]
    fn a_panic_is_a_failure() {
        let failed = guard(|| panic!("number {}", 5));
        assert_eq!(failed, -Errno::NOTRECOVERABLE.raw_os_error());
        assert_eq!(last(), "a bug in libblksnap: number 5");
    }
}
