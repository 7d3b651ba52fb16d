//! Tokens for the unsubscribe links of assignment e-mails (RFC 8058): an HMAC over the id of the
//! user under a key derived from `SECRET_KEY`. They are not stored and do not expire, because a
//! mail may be read years later. They authorize nothing else.

use aws_lc_rs::{constant_time, hmac};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::config::Secret;
use crate::id::Id;

const PURPOSE: &[u8] = b"fasttrack: unsubscribe from assignment mails";

pub fn token(key: &Secret, user_id: Id) -> String {
    URL_SAFE_NO_PAD.encode([user_id.as_bytes(), tag(key, user_id).as_ref()].concat())
}

/// The user of a token, or `None` if it is not genuine.
pub fn verify(key: &Secret, token: &str) -> Option<Id> {
    let bytes: [u8; 48] = URL_SAFE_NO_PAD.decode(token).ok()?.try_into().ok()?;
    let user_id = Id::from_bytes(bytes[..16].try_into().ok()?);
    constant_time::verify_slices_are_equal(tag(key, user_id).as_ref(), &bytes[16..]).ok()?;
    Some(user_id)
}

fn tag(key: &Secret, user_id: Id) -> hmac::Tag {
    let derived = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key.expose()), PURPOSE);
    hmac::sign(
        &hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref()),
        user_id.as_bytes(),
    )
}
