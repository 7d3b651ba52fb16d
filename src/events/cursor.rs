//! Cursors for clients: event log positions, encrypted and authenticated with a key of the server.
//!
//! A plain position would reveal the write volume of the whole server, and clients could forge
//! positions that never existed. Equal positions have equal cursors, so clients may compare them.
//! The encryption is therefore deterministic: AES-GCM-SIV (RFC 8452) stays secure under a fixed
//! nonce.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::LogPosition;
use crate::config::Secret;
use crate::error::{Error, Result};

/// Domain separation from other keys derived from the same secret.
const KEY_INFO: &[u8] = b"fasttrack event cursor 1";
const TAG_LEN: usize = 16;
/// First byte and length of the unencrypted cursors of older versions.
const PLAIN_TAG: u8 = b'e';
const PLAIN_LEN: usize = 2 * size_of::<i64>() + 1;

/// Encodes and decodes cursors.
pub struct CursorCodec(LessSafeKey);

impl fmt::Debug for CursorCodec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cursors(…)")
    }
}

impl CursorCodec {
    /// Derives the key from the secret. Instances with the same secret accept each other's cursors.
    pub fn new(secret: &Secret) -> Result<Self> {
        let derived = Salt::new(HKDF_SHA256, b"").extract(secret.expose());
        let mut key = [0; 32];
        let key = derived
            .expand(&[KEY_INFO], HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut key))
            .and_then(|()| UnboundKey::new(&AES_256_GCM_SIV, &key));
        key.map(|key| Self(LessSafeKey::new(key)))
            .map_err(|_| Error::internal("no cursor key"))
    }

    pub fn encode(&self, position: LogPosition) -> String {
        let mut bytes = Vec::with_capacity(2 * size_of::<i64>() + TAG_LEN);
        bytes.extend(position.xid.to_be_bytes());
        bytes.extend(position.seq.to_be_bytes());
        // Fails only for inputs of gigabytes.
        let _ = self
            .0
            .seal_in_place_append_tag(nonce(), Aad::empty(), &mut bytes);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Decodes a cursor and refuses forged ones with `BAD_USER_INPUT`.
    ///
    /// An unencrypted cursor of an older version decodes to a position before the retention
    /// horizon, so its client reloads its state and continues from there.
    pub fn decode(&self, cursor: &str) -> Result<LogPosition> {
        let forged = || Error::bad_input("The event cursor is invalid.");
        let mut bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| forged())?;
        if bytes.len() == PLAIN_LEN && bytes[0] == PLAIN_TAG {
            return Ok(LogPosition {
                xid: i64::MIN,
                seq: i64::MIN,
            });
        }
        let plain = self
            .0
            .open_in_place(nonce(), Aad::empty(), &mut bytes)
            .map_err(|_| forged())?;
        let numbers = plain
            .split_at_checked(size_of::<i64>())
            .and_then(|(xid, seq)| {
                let number = |bytes: &[u8]| bytes.try_into().map(i64::from_be_bytes).ok();
                Some(LogPosition {
                    xid: number(xid)?,
                    seq: number(seq)?,
                })
            });
        numbers.ok_or_else(forged)
    }
}

/// A fixed nonce: the key encrypts nothing but positions, and equal positions need equal cursors.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cursors(key: u8) -> CursorCodec {
        CursorCodec::new(&Secret::new([key; 32])).expect("a key")
    }

    proptest! {
        #[test]
        fn a_cursor_is_read_again_and_no_other_is(xid: i64, seq: i64, at in 0_usize..43, bit in 0_u8..6) {
            let (cursors, position) = (cursors(1), LogPosition { xid, seq });
            let cursor = cursors.encode(position);
            prop_assert_eq!(cursors.decode(&cursor).expect("a cursor"), position);
            prop_assert_eq!(&cursors.encode(position), &cursor, "equal positions have equal cursors");
            prop_assert!(self::cursors(2).decode(&cursor).is_err(), "from another server");
            let mut bytes = URL_SAFE_NO_PAD.decode(&cursor).expect("base64");
            bytes[at.min(31)] ^= 1 << bit;
            prop_assert!(cursors.decode(&URL_SAFE_NO_PAD.encode(bytes)).is_err(), "changed");
        }

        #[test]
        fn anything_else_is_no_cursor(text in ".{0,60}") {
            prop_assert!(cursors(1).decode(&text).is_err());
        }
    }

    #[test]
    fn a_cursor_of_an_older_version_is_from_before_everything() {
        let plain = URL_SAFE_NO_PAD
            .encode([&[b'e'][..], &7_i64.to_be_bytes(), &9_i64.to_be_bytes()].concat());
        assert!(cursors(1).decode(&plain).expect("a cursor") < LogPosition::default());
    }
}
