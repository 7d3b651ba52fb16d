//! Writes values as JSON (RFC 8259) into one buffer.

use async_graphql::resolver_utils::EnumType;
use async_graphql::{ID, Value};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;

use crate::access::Role;
use crate::store::{project, task};
use crate::time::Timestamp;

/// A value that can be written as JSON.
pub trait WriteJson {
    /// Appends the value to the buffer.
    fn write(&self, out: &mut Vec<u8>);
}

/// A value that serde serializes.
pub struct ViaSerde<'a, T: ?Sized>(pub &'a T);

impl<T: Serialize + ?Sized> WriteJson for ViaSerde<'_, T> {
    fn write(&self, out: &mut Vec<u8>) {
        // Cannot fail: a buffer accepts all bytes, and every value of a response is serializable.
        let _ = serde_json::to_writer(out, self.0);
    }
}

impl WriteJson for str {
    fn write(&self, out: &mut Vec<u8>) {
        // Without an early exit the compiler vectorizes the scan.
        if self.bytes().fold(false, |found, byte| {
            found | matches!(byte, 0..0x20 | b'"' | b'\\')
        }) {
            ViaSerde(self).write(out);
        } else {
            write_quoted(out, self.as_bytes());
        }
    }
}

/// Writes text that needs no escaping.
pub fn write_quoted(out: &mut Vec<u8>, text: &[u8]) {
    out.reserve(text.len() + 2);
    out.push(b'"');
    out.extend_from_slice(text);
    out.push(b'"');
}

/// Bytes that are written as URL-safe base64 without padding, the form of all IDs and cursors.
pub struct Base64Text<'a>(pub &'a [u8]);

impl WriteJson for Base64Text<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        let mut text = [0; 128];
        match URL_SAFE_NO_PAD.encode_slice(self.0, &mut text) {
            Ok(length) => write_quoted(out, &text[..length]),
            Err(_) => write_quoted(out, URL_SAFE_NO_PAD.encode(self.0).as_bytes()),
        }
    }
}

impl WriteJson for bool {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(if *self { b"true" } else { b"false" });
    }
}

impl WriteJson for i64 {
    fn write(&self, out: &mut Vec<u8>) {
        ViaSerde(self).write(out);
    }
}

impl WriteJson for i32 {
    fn write(&self, out: &mut Vec<u8>) {
        i64::from(*self).write(out);
    }
}

impl WriteJson for String {
    fn write(&self, out: &mut Vec<u8>) {
        self.as_str().write(out);
    }
}

impl WriteJson for ID {
    fn write(&self, out: &mut Vec<u8>) {
        self.as_str().write(out);
    }
}

impl WriteJson for Timestamp {
    fn write(&self, out: &mut Vec<u8>) {
        write_quoted(out, &self.text());
    }
}

impl<T: WriteJson + ?Sized> WriteJson for &T {
    fn write(&self, out: &mut Vec<u8>) {
        (*self).write(out);
    }
}

impl<T: WriteJson> WriteJson for Option<T> {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Some(value) => value.write(out),
            None => out.extend_from_slice(b"null"),
        }
    }
}

macro_rules! enums {
    ($($name:ty),+) => {
        $(impl WriteJson for $name {
            fn write(&self, out: &mut Vec<u8>) {
                let name = Self::items().iter().find(|item| item.value == *self).map(|item| item.name);
                write_quoted(out, name.unwrap_or_default().as_bytes());
            }
        })+
    };
}
enums!(
    Role,
    project::ProjectStatus,
    task::Priority,
    task::TaskStatus
);

/// `Binary` is JSON that is already serialized: no scalar of the schema uses it.
impl WriteJson for Value {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Null => out.extend_from_slice(b"null"),
            Self::Number(number) => ViaSerde(number).write(out),
            Self::String(text) => text.write(out),
            Self::Boolean(value) => value.write(out),
            Self::Binary(json) => out.extend_from_slice(json),
            Self::Enum(name) => name.as_str().write(out),
            Self::List(items) => write_list(out, items, WriteJson::write),
            Self::Object(fields) => write_object(out, fields, |(key, value), out| {
                write_member(out, key, value)
            }),
        }
    }
}

/// Writes a list, each item with `write`.
pub fn write_list<T>(
    out: &mut Vec<u8>,
    items: impl IntoIterator<Item = T>,
    write: impl FnMut(T, &mut Vec<u8>),
) {
    separated(out, *b"[]", items, write);
}

/// Writes an object. `write` writes each member with its name.
pub fn write_object<T>(
    out: &mut Vec<u8>,
    members: impl IntoIterator<Item = T>,
    write: impl FnMut(T, &mut Vec<u8>),
) {
    separated(out, *b"{}", members, write);
}

/// Writes a member of an object.
pub fn write_member(out: &mut Vec<u8>, name: &str, value: &(impl WriteJson + ?Sized)) {
    self::write_name(out, name);
    value.write(out);
}

/// Writes the name of a member; its value is written next.
pub fn write_name(out: &mut Vec<u8>, name: &str) {
    name.write(out);
    out.push(b':');
}

fn separated<T>(
    out: &mut Vec<u8>,
    [open, close]: [u8; 2],
    items: impl IntoIterator<Item = T>,
    mut write: impl FnMut(T, &mut Vec<u8>),
) {
    out.push(open);
    for (index, item) in items.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write(item, out);
    }
    out.push(close);
}

#[cfg(test)]
mod tests {
    use async_graphql::value;
    use proptest::prelude::*;

    use super::*;

    fn written(value: &(impl WriteJson + ?Sized)) -> String {
        let mut out = Vec::new();
        value.write(&mut out);
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn a_value_is_written_as_serde_writes_it() {
        let value =
            value!({ "a": [1, -2.5, null, true, { "b": "\u{0}\"\\\u{2028}ä" }], "c": {}, "d": [] });
        assert_eq!(
            written(&value),
            serde_json::to_string(&value).expect("JSON")
        );
        assert_eq!(written(&Value::Binary("[1]".into())), "[1]");
        assert_eq!(
            written(&Some(task::TaskStatus::InProgress)),
            r#""IN_PROGRESS""#
        );
        assert_eq!(written(&None::<bool>), "null");
        assert_eq!(
            (written(&i32::MIN), written(&i64::MAX)),
            (i32::MIN.to_string(), i64::MAX.to_string())
        );
    }

    proptest! {
        #[test]
        fn text_is_read_as_it_was_written(text: String) {
            prop_assert_eq!(serde_json::from_str::<String>(&written(&text)).expect("JSON"), text);
        }
    }
}
