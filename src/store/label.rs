//! Labels: tags for tasks, defined per project. They are visible to everybody who may see the
//! project; changing them needs the permission to update the project.

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

/// Labels per project, and so per task.
const MAX_LABELS: i64 = 100;

#[derive(Clone, Debug, PartialEq, Eq, Queryable, Selectable, Insertable)]
#[diesel(table_name = labels)]
pub struct Label {
    pub id: Id,
    pub project_id: Id,
    /// Unique in its project, ignoring case.
    pub name: String,
    /// `#rrggbb`.
    pub color: String,
    pub created_at: Timestamp,
}

/// Returns the labels with these ids. The caller checks the permission to see their projects.
pub async fn by_ids(conn: &mut Conn, ids: &[Id]) -> Result<Vec<Label>> {
    let found = labels::table.filter(any_id(labels::id, ids));
    Ok(inline_if_few(ids.len(), async {
        on!(conn, |c| found.select(Label::as_select()).load(c).await)
    })
    .await?)
}

/// Returns all labels of these projects, ordered by name.
pub async fn of_projects(conn: &mut Conn, projects: &[Id]) -> Result<Vec<Label>> {
    Ok(on!(conn, |c| labels::table
        .filter(any_id(labels::project_id, projects))
        .order_by((labels::name_key, labels::id))
        .select(Label::as_select())
        .load(c)
        .await)?)
}

/// Returns the labels of a task, ordered by name. No permission check: the calling write has locked
/// the task.
pub async fn of_task(tx: &mut Conn, id: Id) -> Result<Vec<Label>> {
    Ok(on!(tx, |c| task_labels::table
        .inner_join(labels::table)
        .filter(task_labels::task_id.eq(id))
        .order_by((labels::name_key, labels::id))
        .select(Label::as_select())
        .load(c)
        .await)?)
}

/// Returns the labels of each task, ordered by name. Tasks that the viewer may not see have none.
pub async fn of_tasks(
    conn: &mut Conn,
    reader: Option<&Viewer>,
    ids: &[Id],
) -> Result<Vec<(Id, Label)>> {
    let visible = tasks::table
        .filter(any_id(tasks::id, ids))
        .filter(task::visible_to(reader));
    Ok(on!(conn, |c| task_labels::table
        .inner_join(labels::table)
        .filter(task_labels::task_id.eq_any(visible.select(tasks::id)))
        .order_by((labels::name_key, labels::id))
        .select((task_labels::task_id, Label::as_select()))
        .load(c)
        .await)?)
}

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
        // The exclusive lock serializes additions, so that the count stays within the limit.
        project::lock(
            tx,
            viewer,
            Action::UpdateProject,
            project_id,
            "projectId",
            Lock::Update,
        )
        .await?;
        let of_project = labels::table.filter(labels::project_id.eq(project_id));
        if on!(tx, |c| of_project.count().get_result::<i64>(c).await)? >= MAX_LABELS {
            let message = format!("The project already has the maximum of {MAX_LABELS} labels.");
            return Err(Error::user_error(
                "projectId",
                UserErrorCode::QuotaExceeded,
                message,
            ));
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

/// Changes the name or color of a label.
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
            .set((
                labels::name.eq(&label.name),
                labels::name_key.eq(fold(&label.name)),
                labels::color.eq(&label.color)
            ))
            .execute(c)
            .await);
        match updated {
            Err(error) if is_unique_violation(&error) => Err(name_taken()),
            other => Ok(other.map(|_| label)?),
        }
    })
    .await
}

/// Deletes a label and removes it from every task.
pub async fn delete(db: &Db, now: Timestamp, viewer: &Viewer, id: Id) -> Result<()> {
    // Not an inline transaction: the cascade may touch many tasks.
    db.transaction(async |tx| {
        let viewer = &session::lock(tx, now, viewer).await?;
        lock(tx, viewer, id, Lock::Delete).await?;
        on!(tx, |c| diesel::delete(labels::table.find(id))
            .execute(c)
            .await)?;
        Ok(())
    })
    .await
}

/// Returns a label that the viewer may change, locked until the transaction ends. The label's
/// project and the project's owner never change, so they need no lock.
async fn lock(tx: &mut Conn, viewer: &Viewer, id: Id, lock: Lock) -> Result<Label> {
    let missing = || Error::not_found("id", "label");
    let label = by_ids(tx, &[id]).await?.pop().ok_or_else(missing)?;
    let project = project::by_ids(tx, viewer, &[label.project_id])
        .await?
        .pop()
        .ok_or_else(missing)?;
    viewer.require(Action::UpdateProject, &project)?;
    select_locked!(tx, labels::table.find(id).select(Label::as_select()), lock)?
        .pop()
        .ok_or_else(missing)
}

fn name_taken() -> Error {
    Error::user_error(
        "name",
        UserErrorCode::Taken,
        "The project already has a label with this name.",
    )
}
