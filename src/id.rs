//! The identity of a row: a UUID version 7 (RFC 9562), so that ids grow with time and indexes stay compact.

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use diesel::deserialize::FromSqlRow;
use diesel::expression::AsExpression;
use uuid::{Builder, Uuid};

/// The id of any row. Which table it is of, the column, the global id or the type around it says.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, AsExpression, FromSqlRow, serde::Serialize, serde::Deserialize,
)]
#[diesel(sql_type = crate::db::types::sql::Uuid)]
#[serde(transparent)]
pub struct Id(Uuid);

impl Id {
    /// A new id, greater than every one made before in this process.
    #[expect(clippy::new_without_default, reason = "an id has no default")]
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }

    /// The id of a text by its content: a UUID version 8, as RFC 9562 makes one of a SHA-256.
    pub fn of_text(text: &str) -> Self {
        let hash = digest(&SHA256, text.as_bytes());
        let mut bytes = [0; 16];
        bytes.iter_mut().zip(hash.as_ref()).for_each(|(byte, hash)| *byte = *hash);
        Self(Builder::from_custom_bytes(bytes).into_uuid())
    }

    /// From its 16 bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    /// Its 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// From the usual text form.
    pub fn parse(text: &str) -> Option<Self> {
        Uuid::try_parse(text).ok().map(Self)
    }

    /// Appends the 32 hexadecimal digits.
    pub fn push_hex(&self, out: &mut String) {
        out.push_str(self.0.as_simple().encode_lower(&mut Uuid::encode_buffer()));
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
