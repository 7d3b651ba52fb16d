//! Comments on tasks. Their visibility is that of their task.

use std::collections::HashMap;

use diesel::dsl::exists;
use diesel::prelude::*;
use serde::{Deserialize, Serialize};

use super::event::about_comment;
use super::task::{self, Task};
use super::value::CommentBody;
use super::{mention, quota, session};
use crate::access::{Action, Relation, Resource, Viewer};
use crate::db::columns::Columns;
use crate::db::page::{
    Page, PageWindow, Parent, RowPosition, SortKey, any_id, group_by_parent, lateral,
};
use crate::db::rows::RunQueryDsl;
use crate::db::schema::{comments, tasks};
use crate::db::{Conn, Db, Lock, inline_if_few};
use crate::error::{Error, Result};
use crate::events::{self, EventKind};
use crate::id::Id;
use crate::time::Timestamp;
use crate::{keyset, on, select_locked};

#[derive(
    Clone, Debug, PartialEq, Eq, Queryable, Selectable, Insertable, Serialize, Deserialize,
)]
#[diesel(table_name = comments)]
pub struct Comment {
    pub id: Id,
    pub task_id: Id,
    pub author_id: Id,
    pub body: String,
    /// Whether the body was changed after the comment was added.
    pub is_edited: bool,
    pub created_at: Timestamp,
    /// Time of the last change of the body.
    pub updated_at: Timestamp,
}

/// Which columns of a comment are selected. The others are read as empty. Use partial columns only
/// for rows that are displayed, never for rows that are written back or recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CommentColumns {
    /// All but the body, which can be 20 kB.
    Summary,
    Full,
}

impl CommentColumns {
    /// The columns in the order of the fields of [`Comment`].
    const fn expression(self) -> Columns<Comment> {
        Columns::new(match self {
            Self::Summary => {
                "comments.id, comments.task_id, comments.author_id, '', comments.is_edited, comments.created_at, \
                 comments.updated_at"
            }
            Self::Full => {
                "comments.id, comments.task_id, comments.author_id, comments.body, comments.is_edited, \
                 comments.created_at, comments.updated_at"
            }
        })
    }
}

impl Resource for Comment {
    fn has_relation(&self, viewer: &Viewer, standing: Relation) -> bool {
        standing == Relation::Author && self.author_id == viewer.id
    }
}

impl Comment {
    /// The sort key of the comment in its list.
    pub fn position(&self) -> RowPosition {
        RowPosition {
            key: SortKey::Time(self.created_at),
            id: self.id,
        }
    }
}

/// Returns the comments with these ids. The caller checks the permission to see their tasks.
pub async fn by_ids(conn: &mut Conn, ids: &[Id]) -> Result<Vec<Comment>> {
    select_by_ids(conn, ids, CommentColumns::Full).await
}

/// Like [`by_ids`], with the given columns.
pub async fn select_by_ids(
    conn: &mut Conn,
    ids: &[Id],
    columns: CommentColumns,
) -> Result<Vec<Comment>> {
    let found = comments::table
        .filter(any_id(comments::id, ids))
        .select(columns.expression());
    Ok(inline_if_few(ids.len(), async { on!(conn, |c| found.load(c).await) }).await?)
}

/// Returns one page of comments for each task, oldest first. The page is empty for a task that the
/// viewer may not see. For `reader` see `task::visible_to`.
pub async fn pages(
    conn: &mut Conn,
    reader: Option<&Viewer>,
    tasks: &[Id],
    window: &PageWindow,
    columns: CommentColumns,
) -> Result<HashMap<Id, Page<Comment>>> {
    let walk = async {
        on!(conn, |c| {
            let task = tasks::table.filter(tasks::id.eq(Parent));
            let is_visible = exists(task.filter(task::visible_to(reader)));
            let all = comments::table
                .filter(comments::task_id.eq(Parent))
                .filter(is_visible);
            let mut query = all.select(columns.expression()).into_boxed::<Backend>();
            keyset!(query, window, false, (), comments { () => created_at as Time });
            lateral(tasks, "comments", columns.expression(), query)
                .load(c)
                .await
        })
    };
    let rows: Vec<Comment> = inline_if_few(window.limit * tasks.len(), walk).await?;
    let mut groups = group_by_parent(rows, |comment| comment.task_id);
    Ok(tasks
        .iter()
        .map(|id| {
            (
                *id,
                window.page(
                    false,
                    groups.remove(id).unwrap_or_default(),
                    Comment::position,
                ),
            )
        })
        .collect())
}

/// Returns the number of comments on each task that the viewer may see.
pub async fn counts(
    conn: &mut Conn,
    reader: Option<&Viewer>,
    ids: &[Id],
) -> Result<HashMap<Id, i64>> {
    let visible = tasks::table
        .filter(any_id(tasks::id, ids))
        .filter(task::visible_to(reader));
    let counts: Vec<(Id, i64)> = on!(conn, |c| comments::table
        .filter(comments::task_id.eq_any(visible.select(tasks::id)))
        .group_by(comments::task_id)
        .select((comments::task_id, diesel::dsl::count_star()))
        .load(c)
        .await)?;
    Ok(counts.into_iter().collect())
}

/// Adds a comment to a task that the viewer may see.
pub async fn create(
    db: &Db,
    now: Timestamp,
    viewer: &Viewer,
    task_id: Id,
    body: &CommentBody,
) -> Result<Comment> {
    db.inline_transaction(async |tx| {
        let names = mention::parse_handles(body);
        let named = mention::lock(tx, viewer, &names).await?;
        let viewer = &session::lock(tx, now, viewer).await?;
        let task = task::lock(tx, viewer, task_id, Lock::Share).await?;
        let task = task.ok_or_else(|| Error::not_found("taskId", "task"))?;
        viewer.require(Action::AddComment, &task)?;
        let comment = Comment {
            id: Id::new(),
            task_id,
            author_id: viewer.id,
            body: body.to_string(),
            is_edited: false,
            created_at: now,
            updated_at: now,
        };
        on!(tx, |c| diesel::insert_into(comments::table)
            .values(&comment)
            .execute(c)
            .await)?;
        let mentions = named.with_access_to(&task, &names);
        events::append(
            tx,
            &[about_comment(
                EventKind::CommentAdded,
                viewer,
                now,
                &task,
                &comment,
                mentions,
            )],
        )
        .await?;
        quota::add_comment(tx, db.quotas, &task, body).await?;
        Ok(comment)
    })
    .await
}

/// Changes the body of a comment.
pub async fn update(
    db: &Db,
    now: Timestamp,
    viewer: &Viewer,
    id: Id,
    body: &CommentBody,
) -> Result<Comment> {
    db.inline_transaction(async |tx| {
        let found = by_ids(tx, &[id]).await?.pop().ok_or_else(not_found)?;
        let named = mention::lock(tx, viewer, &mention::added_handles(&found.body, body)).await?;
        let viewer = &session::lock(tx, now, viewer).await?;
        let (task, mut comment) = lock(tx, viewer, &found, Lock::Update).await?;
        viewer.require(Action::UpdateComment, &comment)?;
        if comment.body == **body {
            return Ok(comment);
        }
        let old = std::mem::replace(&mut comment.body, body.to_string());
        comment.is_edited = true;
        comment.updated_at = now;
        on!(tx, |c| diesel::update(comments::table.find(id))
            .set((
                comments::body.eq(&comment.body),
                comments::is_edited.eq(true),
                comments::updated_at.eq(now)
            ))
            .execute(c)
            .await)?;
        // Users mentioned in the old body were notified at that time.
        let mentions = named.with_access_to(&task, &mention::added_handles(&old, body));
        events::append(
            tx,
            &[about_comment(
                EventKind::CommentUpdated,
                viewer,
                now,
                &task,
                &comment,
                mentions,
            )],
        )
        .await?;
        quota::change_comment(tx, db.quotas, &task, &old, body).await?;
        Ok(comment)
    })
    .await
}

pub async fn delete(db: &Db, now: Timestamp, viewer: &Viewer, id: Id) -> Result<()> {
    db.inline_transaction(async |tx| {
        let viewer = &session::lock(tx, now, viewer).await?;
        let found = by_ids(tx, &[id]).await?.pop().ok_or_else(not_found)?;
        let (task, comment) = lock(tx, viewer, &found, Lock::Delete).await?;
        viewer.require(Action::DeleteComment, &comment)?;
        on!(tx, |c| diesel::delete(comments::table.find(id))
            .execute(c)
            .await)?;
        let deletion = about_comment(
            EventKind::CommentDeleted,
            viewer,
            now,
            &task,
            &comment,
            Vec::new(),
        );
        events::append(tx, &[deletion]).await?;
        quota::remove_comment(tx, &task, &comment.body).await
    })
    .await
}

/// Returns a comment on a task that the viewer may see, and the task, both locked until the
/// transaction ends. The task decides who may see the comment and who receives its events; it is
/// locked first.
async fn lock(
    tx: &mut Conn,
    viewer: &Viewer,
    found: &Comment,
    lock: Lock,
) -> Result<(Task, Comment)> {
    let task = task::lock(tx, viewer, found.task_id, Lock::Share)
        .await?
        .ok_or_else(not_found)?;
    let comment = comments::table.find(found.id);
    let comment: Option<Comment> =
        select_locked!(tx, comment.select(Comment::as_select()), lock)?.pop();
    Ok((task, comment.ok_or_else(not_found)?))
}

fn not_found() -> Error {
    Error::not_found("id", "comment")
}

#[cfg(test)]
mod tests {
    use diesel::debug_query;
    use diesel::sqlite::Sqlite;

    use super::*;

    #[test]
    fn the_columns_are_those_of_a_comment() {
        let plain = |query: String| query.replace('`', "");
        let full = plain(
            debug_query::<Sqlite, _>(&comments::table.select(Comment::as_select())).to_string(),
        );
        let read = |columns: CommentColumns| {
            plain(
                debug_query::<Sqlite, _>(&comments::table.select(columns.expression())).to_string(),
            )
        };
        assert_eq!(read(CommentColumns::Full), full);
        assert_eq!(
            read(CommentColumns::Summary),
            full.replace("comments.body", "''")
        );
    }
}
