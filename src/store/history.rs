//! What history keeps of the nouns: changes with one copy of each long text, and last pictures of what is gone. An event
//! carries what is short; what is kept apart is read when it is asked for.

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

/// A field that changed, with its value before and after as text; a missing value is `None`. Long texts are kept apart
/// ([`crate::events::text`]) and referred to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The field's name in the schema.
    pub field: String,
    /// Before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// After.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// The text before, if it is kept apart.
    #[serde(default, rename = "fromText", skip_serializing_if = "Option::is_none")]
    pub from_text: Option<Id>,
    /// The text after, if it is kept apart or is still that of the object.
    #[serde(default, rename = "toText", skip_serializing_if = "Option::is_none")]
    pub to_text: Option<Id>,
}

/// The fields of these that differ, each with its value before and after.
pub fn changes<const N: usize>(fields: [(&str, Option<String>, Option<String>); N]) -> Vec<Change> {
    fields
        .into_iter()
        .filter(|(_, from, to)| from != to)
        .map(|(field, from, to)| Change { field: field.to_owned(), from, to, ..Change::default() })
        .collect()
}

/// Takes long texts out of what an event carries.
pub(super) struct TextExtractor {
    object_id: Id,
    owner_id: Id,
    /// The texts to be kept.
    pub(super) texts: Vec<NewEventText>,
}

impl TextExtractor {
    /// Of an event about an object in a project of this owner.
    pub(super) const fn new(object_id: Id, owner_id: Id) -> Self {
        Self { object_id, owner_id, texts: Vec::new() }
    }

    /// Takes the long values out of changes. What a description is now, its object has: it is kept when it is replaced.
    pub(super) fn changes(&mut self, changes: &mut [Change]) {
        for change in changes {
            change.from_text = self.text(&mut change.from);
            change.to_text =
                if change.field == "description" { reference(&mut change.to) } else { self.text(&mut change.to) };
        }
    }

    /// Takes a text out, to be kept, if it is long; leaves its id.
    pub(super) fn text(&mut self, text: &mut Option<String>) -> Option<Id> {
        let body = text.take_if(|text| text.len() > INLINE_BYTES)?;
        let text = NewEventText { object_id: self.object_id, owner_id: self.owner_id, body };
        let id = text.id();
        self.texts.push(text);
        Some(id)
    }
}

/// Takes a long text out that the object has; leaves its id.
pub(super) fn reference(text: &mut Option<String>) -> Option<Id> {
    text.take_if(|text| text.len() > INLINE_BYTES).map(|text| Id::of_text(&text))
}

/// Long texts by their object and id. Those that are not kept are what the objects have now; one that is missing is gone.
pub async fn texts(conn: &mut Conn, keys: &[(Id, Id)]) -> Result<HashMap<(Id, Id), String>> {
    let mut found = load(conn, keys).await?;
    let missing = |found: &HashMap<(Id, Id), String>| -> Vec<(Id, Id)> {
        keys.iter().copied().filter(|key| !found.contains_key(key)).collect()
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
        // Between the two reads.
        found.extend(load(conn, &replaced).await?);
    }
    Ok(found)
}

/// The descriptions that tasks and projects have now.
async fn descriptions(conn: &mut Conn, ids: &[Id]) -> Result<Vec<(Id, String)>> {
    let of_tasks = tasks::table.filter(any_id(tasks::id, ids)).select((tasks::id, tasks::description));
    let mut rows: Vec<(Id, Option<String>)> = on!(conn, |c| of_tasks.load(c).await)?;
    let others: Vec<Id> = ids.iter().copied().filter(|id| rows.iter().all(|(known, _)| known != id)).collect();
    if !others.is_empty() {
        let of_projects =
            projects::table.filter(any_id(projects::id, &others)).select((projects::id, projects::description));
        let of_projects: Vec<(Id, Option<String>)> = on!(conn, |c| of_projects.load(c).await)?;
        rows.extend(of_projects);
    }
    Ok(rows.into_iter().filter_map(|(id, text)| Some((id, text?))).collect())
}

/// What events carry, completed by what is kept apart from them: the texts of last pictures, and the last picture of each
/// task in `gone`, in the event of its deletion, for the events before that. Changes stay references.
pub async fn snapshots(conn: &mut Conn, events: &[Event], gone: &HashSet<Id>) -> Result<Vec<Arc<Snapshot>>> {
    let mut snapshots: Vec<Snapshot> = events.iter().map(Snapshot::of).collect();
    // What an event carries was not read where it is empty, and then no task is shown.
    let without_picture = |snapshot: &Snapshot, event: &Event| {
        event.task_id.filter(|id| !event.data.is_empty() && snapshot.task.is_none() && gone.contains(id))
    };
    let pairs = || events.iter();
    let lacking: HashSet<Id> =
        snapshots.iter().zip(pairs()).filter_map(|(snapshot, event)| without_picture(snapshot, event)).collect();
    let mut pictures = last_snapshots(conn, &lacking.into_iter().collect::<Vec<_>>()).await?;

    let mut keys: HashSet<(Id, Id)> = pictures.iter().filter_map(|(id, last)| Some((*id, last.text?))).collect();
    keys.extend(snapshots.iter().zip(pairs()).filter_map(|(snapshot, event)| Some((event.object()?, snapshot.text?))));
    if !keys.is_empty() {
        let found = texts(conn, &keys.into_iter().collect::<Vec<_>>()).await?;
        let text = |object, id: Option<Id>| id.and_then(|id| found.get(&(object, id)).cloned());
        for (id, last) in &mut pictures {
            last.task.description = last.task.description.take().or_else(|| text(*id, last.text));
        }
        for (snapshot, event) in snapshots.iter_mut().zip(pairs()) {
            if let Some(text) = event.object().and_then(|object| text(object, snapshot.text)) {
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

/// The last state of tasks that are gone, from the deletion, which is the last event of a task.
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
        lateral(tasks, "events", EventColumns::Full.expression(), query).load(c).await
    })?;
    let picture = |event: &Event| {
        let Snapshot { task, text, project, .. } = Snapshot::of(event);
        task.map(|task| (task.id, LastSnapshot { task, text, project }))
    };
    Ok(deletions.iter().filter_map(picture).collect())
}
