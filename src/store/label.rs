//! Labels: a project's own tags for its tasks. Whoever sees the project sees them, whoever may update it manages them.

use diesel::prelude::*;

use super::value::{Color, LabelName, fold};
use super::{project, session, task};
use crate::access::{Action, Viewer};
use crate::db::page::any_id;
use crate::db::rows::RunQueryDsl;
use crate::db::schema::{labels, task_labels, tasks};
use crate::db::{Conn, Db, Lock, inline_if_few};
use crate::error::{Error, Result, UserErrorCode, is_unique_violation};
use crate::id::Id;
use crate::time::Timestamp;
use crate::{on, select_locked};

/// So many labels at most has a project, and so each of its tasks.
const MAX_LABELS: i64 = 100;

/// A tag of a project.
#[derive(Clone, Debug, PartialEq, Eq, Queryable, Selectable, Insertable)]
#[diesel(table_name = labels)]
pub struct Label {
    /// Its id.
    pub id: Id,
    /// The project it belongs to.
    pub project_id: Id,
    /// Unique in its project, without case.
    pub name: String,
    /// `#rrggbb`.
    pub color: String,
    /// When it was made.
    pub created_at: Timestamp,
}

/// The labels with these ids; rights are those of their projects, which the caller asks.
pub async fn by_ids(conn: &mut Conn, ids: &[Id]) -> Result<Vec<Label>> {
    let found = labels::table.filter(any_id(labels::id, ids));
    Ok(inline_if_few(ids.len(), async { on!(conn, |c| found.select(Label::as_select()).load(c).await) }).await?)
}

/// All labels of these projects, by name.
pub async fn of_projects(conn: &mut Conn, projects: &[Id]) -> Result<Vec<Label>> {
    Ok(on!(conn, |c| labels::table
        .filter(any_id(labels::project_id, projects))
        .order_by((labels::name_key, labels::id))
        .select(Label::as_select())
        .load(c)
        .await)?)
}

/// The labels on a task, by name, for a write that has locked the task.
pub async fn of_task(tx: &mut Conn, id: Id) -> Result<Vec<Label>> {
    Ok(on!(tx, |c| task_labels::table
        .inner_join(labels::table)
        .filter(task_labels::task_id.eq(id))
        .order_by((labels::name_key, labels::id))
        .select(Label::as_select())
        .load(c)
        .await)?)
}

/// The labels on these tasks, each with its task, by name; none of a task that the viewer may not
/// see.
pub async fn of_tasks(conn: &mut Conn, reader: Option<&Viewer>, ids: &[Id]) -> Result<Vec<(Id, Label)>> {
    let visible = tasks::table.filter(any_id(tasks::id, ids)).filter(task::visible_to(reader));
    Ok(on!(conn, |c| task_labels::table
        .inner_join(labels::table)
        .filter(task_labels::task_id.eq_any(visible.select(tasks::id)))
        .order_by((labels::name_key, labels::id))
        .select((task_labels::task_id, Label::as_select()))
        .load(c)
        .await)?)
}

/// Adds a label to a project.
pub async fn create(
    db: &Db,
    now: Timestamp,
    viewer: &Viewer,
    project_id: Id,
    name: &LabelName,
    color: &Color,
) -> Result<Label> {
    db.inline_transaction(async |tx| {
        let viewer = &session::lock(tx, now, viewer).await?;
        // Labels are added one after the other, so that they can be counted.
        project::lock(tx, viewer, Action::UpdateProject, project_id, "projectId", Lock::Update).await?;
        let of_project = labels::table.filter(labels::project_id.eq(project_id));
        if on!(tx, |c| of_project.count().get_result::<i64>(c).await)? >= MAX_LABELS {
            let message = format!("The project has {MAX_LABELS} labels already.");
            return Err(Error::user_error("projectId", UserErrorCode::QuotaExceeded, message));
        }
        let label = Label {
            id: Id::new(),
            project_id,
            name: name.to_string(),
            color: color.clone().into_string(),
            created_at: now,
        };
        let inserted = on!(tx, |c| diesel::insert_into(labels::table)
            .values((&label, labels::name_key.eq(fold(name))))
            .execute(c)
            .await);
        match inserted {
            Err(error) if is_unique_violation(&error) => Err(name_taken()),
            other => Ok(other.map(|_| label)?),
        }
    })
    .await
}

/// Changes a label's name or colour.
pub async fn update(
    db: &Db,
    now: Timestamp,
    viewer: &Viewer,
    id: Id,
    name: Option<&LabelName>,
    color: Option<&Color>,
) -> Result<Label> {
    db.inline_transaction(async |tx| {
        let viewer = &session::lock(tx, now, viewer).await?;
        let mut label = lock(tx, viewer, id, Lock::Update).await?;
        if let Some(name) = name {
            label.name = name.to_string();
        }
        if let Some(color) = color {
            label.color = color.clone().into_string();
        }
        let updated = on!(tx, |c| diesel::update(labels::table.find(id))
            .set((labels::name.eq(&label.name), labels::name_key.eq(fold(&label.name)), labels::color.eq(&label.color)))
            .execute(c)
            .await);
        match updated {
            Err(error) if is_unique_violation(&error) => Err(name_taken()),
            other => Ok(other.map(|_| label)?),
        }
    })
    .await
}

/// Deletes a label and takes it off every task.
pub async fn delete(db: &Db, now: Timestamp, viewer: &Viewer, id: Id) -> Result<()> {
    // Not a brief one: it may be on many tasks.
    db.transaction(async |tx| {
        let viewer = &session::lock(tx, now, viewer).await?;
        lock(tx, viewer, id, Lock::Delete).await?;
        on!(tx, |c| diesel::delete(labels::table.find(id)).execute(c).await)?;
        Ok(())
    })
    .await
}

/// A label that the viewer may change, locked until the transaction ends. Its project and that project's owner never
/// change, so they need no lock.
async fn lock(tx: &mut Conn, viewer: &Viewer, id: Id, lock: Lock) -> Result<Label> {
    let missing = || Error::not_found("id", "label");
    let label = by_ids(tx, &[id]).await?.pop().ok_or_else(missing)?;
    let project = project::by_ids(tx, viewer, &[label.project_id]).await?.pop().ok_or_else(missing)?;
    viewer.require(Action::UpdateProject, &project)?;
    select_locked!(tx, labels::table.find(id).select(Label::as_select()), lock)?.pop().ok_or_else(missing)
}

fn name_taken() -> Error {
    Error::user_error("name", UserErrorCode::Taken, "The project has a label of that name already.")
}
