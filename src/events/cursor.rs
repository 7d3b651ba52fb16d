//! Cursors of the event log for clients: positions, encrypted and authenticated with a key of the server.
//!
//! A position tells how much is written on the whole server, which is nobody's business, and a position that a client
//! made up is one that never was. The same position always has the same cursor, so that clients may compare them: that is
//! what AES-GCM-SIV (RFC 8452) allows under a fixed nonce.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::Position;
use crate::config::Secret;
use crate::error::{Error, Result};

/// Keeps the key apart from what else is derived from the same secret.
const KEY_INFO: &[u8] = b"fasttrack event cursor 1";
const TAG_LEN: usize = 16;
/// The first byte and the length of the plain cursors that servers before this version made.
const PLAIN_TAG: u8 = b'e';
const PLAIN_LEN: usize = 2 * size_of::<i64>() + 1;

/// Makes cursors, and reads them again.
pub struct Cursors(LessSafeKey);

impl fmt::Debug for Cursors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cursors(…)")
    }
}

impl Cursors {
    /// With a key that is derived from this secret. Instances with the same secret read each other's cursors.
    pub fn new(secret: &Secret) -> Result<Self> {
        let derived = Salt::new(HKDF_SHA256, b"").extract(secret.expose());
        let mut key = [0; 32];
        let key = derived
            .expand(&[KEY_INFO], HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut key))
            .and_then(|()| UnboundKey::new(&AES_256_GCM_SIV, &key));
        key.map(|key| Self(LessSafeKey::new(key))).map_err(|_| Error::internal("no key for cursors"))
    }

    /// The cursor of a position.
    pub fn encode(&self, position: Position) -> String {
        let mut bytes = Vec::with_capacity(2 * size_of::<i64>() + TAG_LEN);
        bytes.extend(position.xid.to_be_bytes());
        bytes.extend(position.seq.to_be_bytes());
        // It fails for gigabytes alone.
        let _ = self.0.seal_in_place_append_tag(nonce(), Aad::empty(), &mut bytes);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The position of a cursor that this server made. A plain one of an older version is from before everything that is
    /// kept, so that its client reads anew what it shows and goes on from there.
    pub fn decode(&self, cursor: &str) -> Result<Position> {
        let forged = || Error::bad_input("The cursor is not one of the event log.");
        let mut bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| forged())?;
        if bytes.len() == PLAIN_LEN && bytes[0] == PLAIN_TAG {
            return Ok(Position { xid: i64::MIN, seq: i64::MIN });
        }
        let plain = self.0.open_in_place(nonce(), Aad::empty(), &mut bytes).map_err(|_| forged())?;
        let numbers = plain.split_at_checked(size_of::<i64>()).and_then(|(xid, seq)| {
            let number = |bytes: &[u8]| bytes.try_into().map(i64::from_be_bytes).ok();
            Some(Position { xid: number(xid)?, seq: number(seq)? })
        });
        numbers.ok_or_else(forged)
    }
}

/// The same for all: the key makes nothing else, and equal positions are to have equal cursors.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cursors(key: u8) -> Cursors {
        Cursors::new(&Secret::new([key; 32])).expect("a key")
    }

    proptest! {
        #[test]
        fn a_cursor_is_read_again_and_no_other_is(xid: i64, seq: i64, at in 0_usize..43, bit in 0_u8..6) {
            let (cursors, position) = (cursors(1), Position { xid, seq });
            let cursor = cursors.encode(position);
            prop_assert_eq!(cursors.decode(&cursor).expect("a cursor"), position);
            prop_assert_eq!(&cursors.encode(position), &cursor, "equal positions have equal cursors");
            prop_assert!(self::cursors(2).decode(&cursor).is_err(), "of another server");
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
        let plain = URL_SAFE_NO_PAD.encode([&[b'e'][..], &7_i64.to_be_bytes(), &9_i64.to_be_bytes()].concat());
        assert!(cursors(1).decode(&plain).expect("a cursor") < Position::default());
    }
}
