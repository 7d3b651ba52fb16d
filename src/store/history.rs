//! History of tasks and projects: field changes with one stored copy of each long text, and the
//! last state of deleted objects. An event carries short values itself. Long texts are stored
//! separately and read when they are requested.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use diesel::prelude::*;
use serde::{Deserialize, Serialize};

use super::event::{EventColumns, Snapshot};
use super::project::Project;
use super::task::Task;
use crate::db::Conn;
use crate::db::page::{Parent, any_id, lateral};
use crate::db::rows::RunQueryDsl;
use crate::db::schema::{events, projects, tasks};
use crate::error::Result;
use crate::events::text::{INLINE_BYTES, NewEventText, load};
use crate::events::{Event, EventKind};
use crate::id::Id;
use crate::on;

/// A changed field with its values before and after as text; `None` is a missing value. Long texts
/// are stored separately ([`crate::events::text`]) and referenced by id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The field's name in the schema.
    pub field: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// The id of the text before, if it is stored separately.
    #[serde(default, rename = "fromText", skip_serializing_if = "Option::is_none")]
    pub from_text: Option<Id>,
    /// The id of the text after, if it is stored separately or is the object's current description.
    #[serde(default, rename = "toText", skip_serializing_if = "Option::is_none")]
    pub to_text: Option<Id>,
}

/// The fields whose values differ.
pub fn changes<const N: usize>(fields: [(&str, Option<String>, Option<String>); N]) -> Vec<Change> {
    fields
        .into_iter()
        .filter(|(_, from, to)| from != to)
        .map(|(field, from, to)| Change {
            field: field.to_owned(),
            from,
            to,
            ..Change::default()
        })
        .collect()
}

/// Moves long texts out of the data of an event.
pub(super) struct TextExtractor {
    object_id: Id,
    owner_id: Id,
    /// The texts to store.
    pub(super) texts: Vec<NewEventText>,
}

impl TextExtractor {
    /// For an event about an object in a project of this owner.
    pub(super) const fn new(object_id: Id, owner_id: Id) -> Self {
        Self {
            object_id,
            owner_id,
            texts: Vec::new(),
        }
    }

    /// Takes the long values out of changes. The new description is only referenced: the object has
    /// it, and it is stored when it is replaced.
    pub(super) fn changes(&mut self, changes: &mut [Change]) {
        for change in changes {
            change.from_text = self.text(&mut change.from);
            change.to_text = if change.field == "description" {
                reference(&mut change.to)
            } else {
                self.text(&mut change.to)
            };
        }
    }

    /// Takes a text out to be stored if it is long, and returns its id.
    pub(super) fn text(&mut self, text: &mut Option<String>) -> Option<Id> {
        let body = text.take_if(|text| text.len() > INLINE_BYTES)?;
        let text = NewEventText {
            object_id: self.object_id,
            owner_id: self.owner_id,
            body,
        };
        let id = text.id();
        self.texts.push(text);
        Some(id)
    }
}

/// Takes a long text out that its object has, and returns its id.
pub(super) fn reference(text: &mut Option<String>) -> Option<Id> {
    text.take_if(|text| text.len() > INLINE_BYTES)
        .map(|text| Id::of_text(&text))
}

/// Loads long texts by object and id. Those that are not stored may be current descriptions; a text
/// that is neither is missing from the result.
pub async fn texts(conn: &mut Conn, keys: &[(Id, Id)]) -> Result<HashMap<(Id, Id), String>> {
    let mut found = load(conn, keys).await?;
    let missing = |found: &HashMap<(Id, Id), String>| -> Vec<(Id, Id)> {
        keys.iter()
            .copied()
            .filter(|key| !found.contains_key(key))
            .collect()
    };
    let wanted = missing(&found);
    if wanted.is_empty() {
        return Ok(found);
    }
    let objects: HashSet<Id> = wanted.iter().map(|(object, _)| *object).collect();
    for (object, text) in descriptions(conn, &objects.into_iter().collect::<Vec<_>>()).await? {
        let key = (object, Id::of_text(&text));
        if wanted.contains(&key) {
            found.insert(key, text);
        }
    }
    let replaced = missing(&found);
    if !replaced.is_empty() {
        // Replaced between the two reads.
        found.extend(load(conn, &replaced).await?);
    }
    Ok(found)
}

/// The current descriptions of tasks and projects.
async fn descriptions(conn: &mut Conn, ids: &[Id]) -> Result<Vec<(Id, String)>> {
    let of_tasks = tasks::table
        .filter(any_id(tasks::id, ids))
        .select((tasks::id, tasks::description));
    let mut rows: Vec<(Id, Option<String>)> = on!(conn, |c| of_tasks.load(c).await)?;
    let others: Vec<Id> = ids
        .iter()
        .copied()
        .filter(|id| rows.iter().all(|(known, _)| known != id))
        .collect();
    if !others.is_empty() {
        let of_projects = projects::table
            .filter(any_id(projects::id, &others))
            .select((projects::id, projects::description));
        let of_projects: Vec<(Id, Option<String>)> = on!(conn, |c| of_projects.load(c).await)?;
        rows.extend(of_projects);
    }
    Ok(rows
        .into_iter()
        .filter_map(|(id, text)| Some((id, text?)))
        .collect())
}

/// The snapshots of events, completed from separate storage: with the descriptions of deleted
/// objects, and, in events before the deletion of a task in `gone`, with the last state of the
/// task. Changes remain references.
pub async fn snapshots(
    conn: &mut Conn,
    events: &[Event],
    gone: &HashSet<Id>,
) -> Result<Vec<Arc<Snapshot>>> {
    let mut snapshots: Vec<Snapshot> = events.iter().map(Snapshot::of).collect();
    // Empty data was not read (`EventColumns::Summary`), and then no task is shown.
    let without_picture = |snapshot: &Snapshot, event: &Event| {
        event
            .task_id
            .filter(|id| !event.data.is_empty() && snapshot.task.is_none() && gone.contains(id))
    };
    let pairs = || events.iter();
    let lacking: HashSet<Id> = snapshots
        .iter()
        .zip(pairs())
        .filter_map(|(snapshot, event)| without_picture(snapshot, event))
        .collect();
    let mut pictures = last_snapshots(conn, &lacking.into_iter().collect::<Vec<_>>()).await?;

    let mut keys: HashSet<(Id, Id)> = pictures
        .iter()
        .filter_map(|(id, last)| Some((*id, last.text?)))
        .collect();
    keys.extend(
        snapshots
            .iter()
            .zip(pairs())
            .filter_map(|(snapshot, event)| Some((event.object()?, snapshot.text?))),
    );
    if !keys.is_empty() {
        let found = texts(conn, &keys.into_iter().collect::<Vec<_>>()).await?;
        let text = |object, id: Option<Id>| id.and_then(|id| found.get(&(object, id)).cloned());
        for (id, last) in &mut pictures {
            last.task.description = last
                .task
                .description
                .take()
                .or_else(|| text(*id, last.text));
        }
        for (snapshot, event) in snapshots.iter_mut().zip(pairs()) {
            if let Some(text) = event
                .object()
                .and_then(|object| text(object, snapshot.text))
            {
                snapshot.complete(text);
            }
        }
    }
    for (snapshot, event) in snapshots.iter_mut().zip(pairs()) {
        if let Some(last) = without_picture(snapshot, event).and_then(|id| pictures.get(&id)) {
            snapshot.task = Some(last.task.clone());
            snapshot.project = last.project.clone();
        }
    }
    Ok(snapshots.into_iter().map(Arc::new).collect())
}

/// The last state of a deleted task.
struct LastSnapshot {
    task: Task,
    /// The id of its description, if that is stored separately.
    text: Option<Id>,
    /// Its project, without the description.
    project: Option<Project>,
}

/// The last states of deleted tasks. The deletion is the last event of a task.
async fn last_snapshots(conn: &mut Conn, tasks: &[Id]) -> Result<HashMap<Id, LastSnapshot>> {
    if tasks.is_empty() {
        return Ok(HashMap::new());
    }
    let deletions: Vec<Event> = on!(conn, |c| {
        let query = events::table
            .select(EventColumns::Full.expression())
            .filter(events::task_id.eq(Parent.nullable()))
            .filter(events::kind.eq(EventKind::TaskDeleted))
            .order_by((events::xid.desc(), events::seq.desc()))
            .limit(1)
            .into_boxed::<Backend>();
        lateral(tasks, "events", EventColumns::Full.expression(), query)
            .load(c)
            .await
    })?;
    let picture = |event: &Event| {
        let Snapshot {
            task,
            text,
            project,
            ..
        } = Snapshot::of(event);
        task.map(|task| {
            (
                task.id,
                LastSnapshot {
                    task,
                    text,
                    project,
                },
            )
        })
    };
    Ok(deletions.iter().filter_map(picture).collect())
}
