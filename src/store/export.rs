//! Everything that is stored of one person, as one JSON document.

use diesel::prelude::*;
use serde_json::{Value, json};

use super::comment::Comment;
use super::project::Project;
use super::task::Task;
use super::{audit, notification, user};
use crate::access::{Role, Viewer};
use crate::db::Conn;
use crate::db::rows::RunQueryDsl;
use crate::db::schema::{comments, labels, projects, sessions, tasks};
use crate::error::{Error, Result};
use crate::id::Id;
use crate::on;

/// The document. Ids are as the database has them; nothing that proves who somebody is goes into it.
pub async fn of(conn: &mut Conn, viewer: &Viewer) -> Result<Value> {
    let me = viewer.id;
    let user = user::any_by_ids(conn, &[me]).await?.pop().ok_or_else(Error::unauthenticated)?;
    let own_projects: Vec<Project> = on!(conn, |c| projects::table
        .filter(projects::owner_id.eq(me))
        .order_by((projects::created_at, projects::id))
        .select(Project::as_select())
        .load(c)
        .await)?;
    let own_labels: Vec<(Id, Id, String, String)> = on!(conn, |c| labels::table
        .inner_join(projects::table.on(projects::id.eq(labels::project_id)))
        .filter(projects::owner_id.eq(me))
        .order_by((labels::created_at, labels::id))
        .select((labels::id, labels::project_id, labels::name, labels::color))
        .load(c)
        .await)?;
    let my_tasks: Vec<Task> = on!(conn, |c| tasks::table
        .filter(tasks::owner_id.eq(me).or(tasks::assignee_id.eq(me)).or(tasks::creator_id.eq(me)))
        .order_by((tasks::created_at, tasks::id))
        .select(Task::as_select())
        .load(c)
        .await)?;
    let my_comments: Vec<Comment> = on!(conn, |c| comments::table
        .filter(comments::author_id.eq(me))
        .order_by((comments::created_at, comments::id))
        .select(Comment::as_select())
        .load(c)
        .await)?;
    let my_sessions: Vec<super::session::Session> = on!(conn, |c| sessions::table
        .filter(sessions::user_id.eq(me))
        .order_by((sessions::created_at, sessions::id))
        .select(super::session::Session::as_select())
        .load(c)
        .await)?;
    let session = |session: &super::session::Session| {
        json!({
            "id": session.id,
            "createdAt": session.created_at,
            "lastUsedAt": session.last_used_at,
            "expiresAt": session.expires_at,
            "revokedAt": session.revoked_at,
            "ipAddress": session.ip_address,
            "userAgent": session.user_agent,
        })
    };
    let label = |(id, project, name, color): &(Id, Id, String, String)| json!({ "id": id, "projectId": project, "name": name, "color": color });
    Ok(json!({
        "account": {
            "id": user.id,
            "email": user.email,
            "username": user.username,
            "displayName": user.display_name,
            "role": if user.role == Role::Admin { "ADMIN" } else { "USER" },
            "isActive": user.is_active,
            "emailVerified": user.email_verified,
            "lastLoginAt": my_sessions.last().map(|session| session.created_at).max(user.last_login_at),
            "createdAt": user.created_at,
            "updatedAt": user.updated_at,
        },
        "sessions": my_sessions.iter().map(session).collect::<Vec<_>>(),
        "projects": own_projects,
        "labels": own_labels.iter().map(label).collect::<Vec<_>>(),
        "tasks": my_tasks,
        "comments": my_comments,
        "notifications": notification::all_of(conn, me).await?,
        "securityLog": audit::all_of(conn, me).await?,
    }))
}
