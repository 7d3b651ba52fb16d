//! Storage quotas of accounts, projects and tasks. Each is a counter in a row of its own, updated
//! in the transaction that changes what it counts. The counters are exact under concurrency,
//! because writers wait for the row, and cheap, because nothing is recounted.
//!
//! **A transaction changes its counters last**, that of the account after the others. It locks them
//! only while it commits, and two transactions cannot deadlock. Everything in an account's own
//! projects counts for the account, regardless of the author.

use diesel::prelude::*;

use super::task::Task;
use crate::db::Conn;
use crate::db::page::any_id;
use crate::db::rows::RunQueryDsl;
use crate::db::schema::{project_usage, task_usage, user_usage};
use crate::error::{Error, Result, UserErrorCode};
use crate::events::text::text_bytes;
use crate::id::Id;
use crate::limits::StorageQuotas;
use crate::on;

/// Increments a counter; false if that would exceed the quota. The row is inserted when it is first
/// needed, by whichever transaction comes first.
macro_rules! increment {
    ($tx:ident, $table:ident, $update:expr, $row:expr) => {{
        let mut raised = on!($tx, |c| $update.execute(c).await)? == 1;
        if !raised {
            let row = diesel::insert_into($table::table)
                .values($row)
                .on_conflict_do_nothing();
            on!($tx, |c| row.execute(c).await)?;
            raised = on!($tx, |c| $update.execute(c).await)? == 1;
        }
        raised
    }};
}

fn exceeded(field: &'static str, message: String) -> Error {
    Error::user_error(field, UserErrorCode::QuotaExceeded, message)
}

/// Counts a new project and its description.
pub async fn add_project(
    tx: &mut Conn,
    quotas: StorageQuotas,
    owner: Id,
    text: Option<&str>,
) -> Result<()> {
    let row = user_usage::table
        .find(owner)
        .filter(user_usage::projects.lt(quotas.projects));
    let update = || diesel::update(row).set(user_usage::projects.eq(user_usage::projects + 1));
    if !increment!(tx, user_usage, update(), empty_usage(owner)) {
        let message = format!(
            "You already have {} projects, the maximum. Delete one first.",
            quotas.projects
        );
        return Err(exceeded("name", message));
    }
    add_text(tx, quotas, owner, size(text), "description").await
}

/// Subtracts a project. `text_bytes` is the change in stored text: deleted text counts while
/// history keeps it.
pub async fn remove_project(tx: &mut Conn, owner: Id, text_bytes: i64) -> Result<()> {
    let changed = (
        user_usage::projects.eq(user_usage::projects - 1),
        user_usage::text_bytes.eq(user_usage::text_bytes + text_bytes),
    );
    on!(tx, |c| diesel::update(user_usage::table.find(owner))
        .set(changed)
        .execute(c)
        .await)?;
    Ok(())
}

/// Counts a new task and its description.
pub async fn add_task(tx: &mut Conn, quotas: StorageQuotas, task: &Task) -> Result<()> {
    let row = project_usage::table
        .find(task.project_id)
        .filter(project_usage::tasks.lt(quotas.tasks));
    let update = || diesel::update(row).set(project_usage::tasks.eq(project_usage::tasks + 1));
    let none = (
        project_usage::project_id.eq(task.project_id),
        project_usage::tasks.eq(0),
    );
    if !increment!(tx, project_usage, update(), none) {
        let message = format!(
            "The project already has {} tasks, the maximum. Delete some first.",
            quotas.tasks
        );
        return Err(exceeded("projectId", message));
    }
    add_text(
        tx,
        quotas,
        task.owner_id,
        size(task.description.as_deref()),
        "description",
    )
    .await
}

/// Subtracts a task; see [`remove_project`].
pub async fn remove_task(tx: &mut Conn, task: &Task, text_bytes: i64) -> Result<()> {
    let row = project_usage::table.find(task.project_id);
    let changed = project_usage::tasks.eq(project_usage::tasks - 1);
    on!(tx, |c| diesel::update(row).set(changed).execute(c).await)?;
    adjust_text(tx, task.owner_id, text_bytes).await
}

/// Counts a new comment.
pub async fn add_comment(
    tx: &mut Conn,
    quotas: StorageQuotas,
    task: &Task,
    body: &str,
) -> Result<()> {
    let row = task_usage::table
        .find(task.id)
        .filter(task_usage::comments.lt(quotas.comments));
    let size = text_bytes(body);
    let more = (
        task_usage::comments.eq(task_usage::comments + 1),
        task_usage::text_bytes.eq(task_usage::text_bytes + size),
    );
    let update = || diesel::update(row).set(more);
    let none = (
        task_usage::task_id.eq(task.id),
        task_usage::comments.eq(0),
        task_usage::text_bytes.eq(0),
    );
    if !increment!(tx, task_usage, update(), none) {
        let message = format!(
            "The task already has {} comments, the maximum. Delete some first.",
            quotas.comments
        );
        return Err(exceeded("taskId", message));
    }
    add_text(tx, quotas, task.owner_id, size, "body").await
}

/// Counts the changed text of a comment.
pub async fn change_comment(
    tx: &mut Conn,
    quotas: StorageQuotas,
    task: &Task,
    old: &str,
    new: &str,
) -> Result<()> {
    let size = text_bytes(new) - text_bytes(old);
    let row = task_usage::table.find(task.id);
    let changed = task_usage::text_bytes.eq(task_usage::text_bytes + size);
    on!(tx, |c| diesel::update(row).set(changed).execute(c).await)?;
    add_text(tx, quotas, task.owner_id, size, "body").await
}

/// Subtracts a comment. History keeps no text of comments.
pub async fn remove_comment(tx: &mut Conn, task: &Task, body: &str) -> Result<()> {
    let size = text_bytes(body);
    let row = task_usage::table.find(task.id);
    let changed = (
        task_usage::comments.eq(task_usage::comments - 1),
        task_usage::text_bytes.eq(task_usage::text_bytes - size),
    );
    on!(tx, |c| diesel::update(row).set(changed).execute(c).await)?;
    adjust_text(tx, task.owner_id, -size).await
}

/// The bytes of the comments on these tasks. The caller prevents new comments with its locks.
pub async fn comment_bytes(tx: &mut Conn, tasks: &[Id]) -> Result<i64> {
    let of_tasks = task_usage::table
        .filter(any_id(task_usage::task_id, tasks))
        .select(task_usage::text_bytes);
    let sizes: Vec<i64> = on!(tx, |c| of_tasks.load(c).await)?;
    Ok(sizes.into_iter().sum())
}

/// Counts a changed description, plus `kept` bytes that history keeps.
pub async fn change_text(
    tx: &mut Conn,
    quotas: StorageQuotas,
    owner: Id,
    (old, new): (Option<&str>, Option<&str>),
    kept: i64,
) -> Result<()> {
    add_text(
        tx,
        quotas,
        owner,
        size(new) - size(old) + kept,
        "description",
    )
    .await
}

/// Subtracts text that has left the history, for each owner.
pub async fn release(tx: &mut Conn, mut sizes: Vec<(Id, i64)>) -> Result<()> {
    // In a fixed order, so that two transactions cannot deadlock.
    sizes.sort_unstable();
    for (owner, bytes) in sizes {
        adjust_text(tx, owner, -bytes).await?;
    }
    Ok(())
}

/// The bytes of an optional text.
pub fn size(text: Option<&str>) -> i64 {
    text.map_or(0, text_bytes)
}

async fn add_text(
    tx: &mut Conn,
    quotas: StorageQuotas,
    owner: Id,
    added: i64,
    field: &'static str,
) -> Result<()> {
    if added <= 0 {
        return adjust_text(tx, owner, added).await;
    }
    let row = user_usage::table
        .find(owner)
        .filter(user_usage::text_bytes.le(quotas.text_bytes - added));
    let update =
        || diesel::update(row).set(user_usage::text_bytes.eq(user_usage::text_bytes + added));
    if increment!(tx, user_usage, update(), empty_usage(owner)) {
        return Ok(());
    }
    let message = format!(
        "The projects of this account hold {} MiB of text, the maximum. Delete what you do not need. It counts until \
         it leaves the history.",
        quotas.text_bytes / crate::limits::MIB
    );
    Err(exceeded(field, message))
}

/// Changes the text counter of an account without a limit.
async fn adjust_text(tx: &mut Conn, owner: Id, by: i64) -> Result<()> {
    if by != 0 {
        let changed = user_usage::text_bytes.eq(user_usage::text_bytes + by);
        on!(tx, |c| diesel::update(user_usage::table.find(owner))
            .set(changed)
            .execute(c)
            .await)?;
    }
    Ok(())
}

type EmptyUsage = (
    diesel::dsl::Eq<user_usage::user_id, Id>,
    diesel::dsl::Eq<user_usage::projects, i64>,
    diesel::dsl::Eq<user_usage::text_bytes, i64>,
);

fn empty_usage(owner: Id) -> EmptyUsage {
    (
        user_usage::user_id.eq(owner),
        user_usage::projects.eq(0),
        user_usage::text_bytes.eq(0),
    )
}
