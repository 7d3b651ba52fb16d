//! Long texts in events. Short texts are stored in the event's own row. A long text is stored once
//! per object and content, however many events refer to it. The current text of an object is not
//! stored here; it is in the object's row.

use std::collections::HashMap;

use diesel::dsl::sum;
use diesel::prelude::*;
use diesel::sql_types::Text;

use crate::db::Conn;
use crate::db::page::any_id;
use crate::db::rows::RunQueryDsl;
use crate::db::schema::history_texts;
use crate::error::Result;
use crate::id::Id;
use crate::on;

diesel::define_sql_function! {
    /// Length of a text in bytes. Neither database reads the text itself for it.
    fn octet_length(text: Text) -> Integer;
}

/// Texts of up to this many bytes are stored in the event itself; a reference takes about 50.
pub const INLINE_BYTES: usize = 256;

/// A text to store, unless its object has it already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEventText {
    /// The task or project whose history the text belongs to.
    pub object_id: Id,
    /// The owner of the project, whose quota the text counts in.
    pub owner_id: Id,
    pub body: String,
}

impl NewEventText {
    /// The key of the text within its object: see [`Id::of_text`].
    pub fn id(&self) -> Id {
        Id::of_text(&self.body)
    }
}

/// Stores the texts of an event, in the transaction that appends it. Returns the bytes added.
pub async fn insert(tx: &mut Conn, event_id: Id, texts: &[NewEventText]) -> Result<i64> {
    let mut added = 0;
    for text in texts {
        let id = text.id();
        let row = (
            history_texts::object_id.eq(text.object_id),
            history_texts::id.eq(id),
            history_texts::owner_id.eq(text.owner_id),
            history_texts::event_id.eq(event_id),
            history_texts::body.eq(&text.body),
        );
        let insert = diesel::insert_into(history_texts::table)
            .values(row)
            .on_conflict_do_nothing();
        if on!(tx, |c| insert.execute(c).await)? == 1 {
            added += text_bytes(&text.body);
            continue;
        }
        // The text expires with the newest event that refers to it.
        let kept = history_texts::table.find((text.object_id, id));
        on!(tx, |c| diesel::update(kept)
            .set(history_texts::event_id.eq(event_id))
            .execute(c)
            .await)?;
    }
    Ok(added)
}

/// Bytes that a text counts in the quota.
pub fn text_bytes(text: &str) -> i64 {
    i64::try_from(text.len()).unwrap_or(i64::MAX)
}

/// Returns the stored texts among these; a key is the ids of object and text.
pub async fn load(conn: &mut Conn, keys: &[(Id, Id)]) -> Result<HashMap<(Id, Id), String>> {
    let (objects, ids): (Vec<Id>, Vec<Id>) = keys.iter().copied().unzip();
    let rows: Vec<(Id, Id, String)> = on!(conn, |c| history_texts::table
        .filter(any_id(history_texts::object_id, &objects))
        .filter(any_id(history_texts::id, &ids))
        .select((
            history_texts::object_id,
            history_texts::id,
            history_texts::body
        ))
        .load(c)
        .await)?;
    Ok(rows
        .into_iter()
        .map(|(object, id, body)| ((object, id), body))
        .collect())
}

/// Deletes the texts of `ended` objects, whose whole history has expired, and those of `objects`
/// that were last referred to by one of `events`. Returns the bytes freed, by owner.
pub async fn delete_expired(
    tx: &mut Conn,
    ended: &[Id],
    objects: &[Id],
    events: &[Id],
) -> Result<Vec<(Id, i64)>> {
    let of_ended = any_id(history_texts::object_id, ended);
    let of_events =
        any_id(history_texts::object_id, objects).and(any_id(history_texts::event_id, events));
    let expired = history_texts::table.filter(of_ended.or(of_events));
    let size = expired.clone().group_by(history_texts::owner_id).select((
        history_texts::owner_id,
        sum(octet_length(history_texts::body)),
    ));
    let sizes: Vec<(Id, Option<i64>)> = on!(tx, |c| size.load(c).await)?;
    if !sizes.is_empty() {
        on!(tx, |c| diesel::delete(expired.clone()).execute(c).await)?;
    }
    Ok(sizes
        .into_iter()
        .map(|(owner, bytes)| (owner, bytes.unwrap_or_default()))
        .collect())
}
