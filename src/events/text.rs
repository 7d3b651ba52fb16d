//! Long texts that events refer to. An event has what is short in its own row; a long text is kept once per object and
//! content, however many events have it before or after. A text that an object still has is not kept here: the last one
//! is in the object's row.

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
    /// How many bytes a text has; neither database reads the text for it.
    fn octet_length(text: Text) -> Integer;
}

/// Texts of up to this many bytes are in the event itself: a reference takes about 50.
pub const INLINE_BYTES: usize = 256;

/// A text to be kept, unless it is kept already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEventText {
    /// The object whose history it belongs to: a task or a project.
    pub object_id: Id,
    /// Whose project the object belongs to, and so in whose quota it counts.
    pub owner_id: Id,
    /// The text.
    pub body: String,
}

impl NewEventText {
    /// By what it is found among the texts of its object: see [`Id::of_text`].
    pub fn id(&self) -> Id {
        Id::of_text(&self.body)
    }
}

/// Keeps the texts of an event, in the transaction that appends it. Returns by how many bytes the history has grown.
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
        let insert = diesel::insert_into(history_texts::table).values(row).on_conflict_do_nothing();
        if on!(tx, |c| insert.execute(c).await)? == 1 {
            added += text_bytes(&text.body);
            continue;
        }
        // The newest event that refers to it: with that one it expires.
        let kept = history_texts::table.find((text.object_id, id));
        on!(tx, |c| diesel::update(kept).set(history_texts::event_id.eq(event_id)).execute(c).await)?;
    }
    Ok(added)
}

/// How much a text counts.
pub fn text_bytes(text: &str) -> i64 {
    i64::try_from(text.len()).unwrap_or(i64::MAX)
}

/// The kept ones of these texts, each named by its object and id.
pub async fn load(conn: &mut Conn, keys: &[(Id, Id)]) -> Result<HashMap<(Id, Id), String>> {
    let (objects, ids): (Vec<Id>, Vec<Id>) = keys.iter().copied().unzip();
    let rows: Vec<(Id, Id, String)> = on!(conn, |c| history_texts::table
        .filter(any_id(history_texts::object_id, &objects))
        .filter(any_id(history_texts::id, &ids))
        .select((history_texts::object_id, history_texts::id, history_texts::body))
        .load(c)
        .await)?;
    Ok(rows.into_iter().map(|(object, id, body)| ((object, id), body)).collect())
}

/// Drops the texts of objects whose history has ended, and those that the last of these events referred to. Returns how
/// many bytes that were, by owner.
pub async fn delete_expired(tx: &mut Conn, ended: &[Id], objects: &[Id], events: &[Id]) -> Result<Vec<(Id, i64)>> {
    let of_ended = any_id(history_texts::object_id, ended);
    let of_events = any_id(history_texts::object_id, objects).and(any_id(history_texts::event_id, events));
    let expired = history_texts::table.filter(of_ended.or(of_events));
    let size = expired
        .clone()
        .group_by(history_texts::owner_id)
        .select((history_texts::owner_id, sum(octet_length(history_texts::body))));
    let sizes: Vec<(Id, Option<i64>)> = on!(tx, |c| size.load(c).await)?;
    if !sizes.is_empty() {
        on!(tx, |c| diesel::delete(expired.clone()).execute(c).await)?;
    }
    Ok(sizes.into_iter().map(|(owner, bytes)| (owner, bytes.unwrap_or_default())).collect())
}
