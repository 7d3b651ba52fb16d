//! Ids of rows: UUID version 7 (RFC 9562), which grow with time and keep indexes compact.

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use diesel::deserialize::FromSqlRow;
use diesel::expression::AsExpression;
use uuid::{Builder, Uuid};

/// The id of a row in any table. The table follows from the column, the global id or the wrapper
/// type.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    AsExpression,
    FromSqlRow,
    serde::Serialize,
    serde::Deserialize,
)]
#[diesel(sql_type = crate::db::types::sql::Uuid)]
#[serde(transparent)]
pub struct Id(Uuid);

impl Id {
    /// Generates an id, greater than all previous ones of this process.
    #[expect(clippy::new_without_default, reason = "an id has no default")]
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }

    /// The id of a text, made from its SHA-256 as a UUID version 8 (RFC 9562).
    pub fn of_text(text: &str) -> Self {
        let hash = digest(&SHA256, text.as_bytes());
        let mut bytes = [0; 16];
        bytes
            .iter_mut()
            .zip(hash.as_ref())
            .for_each(|(byte, hash)| *byte = *hash);
        Self(Builder::from_custom_bytes(bytes).into_uuid())
    }

    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// Parses the hyphenated form and the other common text forms of a UUID.
    pub fn parse(text: &str) -> Option<Self> {
        Uuid::try_parse(text).ok().map(Self)
    }

    /// Appends the 32 hexadecimal digits, without hyphens.
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
