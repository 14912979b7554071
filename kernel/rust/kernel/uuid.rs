// SPDX-License-Identifier: GPL-2.0

//! Universally unique identifiers.
//!
//! C header: [`include/linux/uuid.h`](srctree/include/linux/uuid.h)

use crate::{
    bindings,
    fmt, //
};

/// A UUID: 16 bytes in the order of RFC 9562.
///
/// # Examples
///
/// ```
/// use kernel::uuid::Uuid;
///
/// let id = Uuid::random();
/// assert_eq!(id.0[6] >> 4, 4);
/// assert_ne!(id, Uuid::random());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// Makes a random one, of version 4.
    pub fn random() -> Self {
        let mut bytes = [0; 16];
        // SAFETY: The function writes 16 bytes.
        unsafe { bindings::generate_random_uuid(bytes.as_mut_ptr()) };
        Self(bytes)
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}
