//! Data export: everything stored about one user, as one JSON document.

use diesel::dsl::exists;
use diesel::prelude::*;
use serde::Serialize;
use serde_json::json;

use super::audit::Entry;
use super::comment::Comment;
use super::email_change::EmailChange;
use super::label::Label;
use super::notification::Notification;
use super::project::Project;
use super::session::Session;
use super::task::Task;
use super::user;
use super::username_change::UsernameChange;
use crate::access::{Role, Viewer};
use crate::db::Conn;
use crate::db::page::any_id;
use crate::db::rows::RunQueryDsl;
use crate::db::schema::{
    audit_entries, comments, email_changes, labels, notifications, projects, sessions, tasks,
    username_changes, users,
};
use crate::error::{Code, Error, Result};
use crate::id::Id;
use crate::on;
use crate::time::Timestamp;

/// Maximum size of the document in bytes.
pub const MAX_EXPORT_BYTES: usize = 64 * 1024 * 1024;
/// Rows that are read at once. A batch of the longest is a few megabytes.
const BATCH_ROWS: usize = 200;

/// A JSON document under construction.
struct JsonWriter(Vec<u8>);

impl JsonWriter {
    fn member(&mut self, name: &str) {
        self.0.push(if self.0.is_empty() { b'{' } else { b',' });
        self.value(name);
        self.0.push(b':');
    }

    fn value(&mut self, value: &(impl Serialize + ?Sized)) {
        // Writing to a buffer cannot fail, and stored values always serialize.
        let _ = serde_json::to_writer(&mut self.0, value);
    }

    fn begin(&mut self, name: &str) {
        self.member(name);
        self.0.push(b'[');
    }

    fn item(&mut self, item: &impl Serialize) -> Result<()> {
        if self.0.last() != Some(&b'[') {
            self.0.push(b',');
        }
        self.value(item);
        if self.0.len() <= MAX_EXPORT_BYTES {
            return Ok(());
        }
        let message =
            "Your data is larger than 64 MiB. Ask the operator of this server for an export.";
        Err(Error::refused(Code::DocumentTooComplex, message))
    }
}

/// Writes the rows of a table that match a condition as a list, ordered by a column. Their ids are
/// read first, which takes little memory, and then the rows in batches. The second condition
/// filters the rows again: where rows of other users have the same ids, or access may have ended
/// meanwhile.
macro_rules! rows {
    (
        $document:ident, $conn:ident, $name:literal, $table:ident by $order:ident, $of:expr $(, and $again:expr)?,
        |$row:ident: $kind:ty| $item:expr
    ) => {
        $document.begin($name);
        let ids: Vec<Id> = on!($conn, |c| $table::table
            .filter($of)
            .order_by(($table::$order, $table::id))
            .select($table::id)
            .load(c)
            .await)?;
        for ids in ids.chunks(BATCH_ROWS) {
            let rows: Vec<$kind> = on!($conn, |c| $table::table
                .filter(any_id($table::id, ids))
                $(.filter($again))?
                .order_by(($table::$order, $table::id))
                .select(<$kind>::as_select())
                .load(c)
                .await)?;
            for $row in &rows {
                $document.item($item)?;
            }
        }
        $document.0.push(b']');
    };
}

/// Exports the viewer's data. Ids are raw database ids. Credentials are left out.
pub async fn export(conn: &mut Conn, viewer: &Viewer) -> Result<Vec<u8>> {
    let me = viewer.id;
    let user = user::any_by_ids(conn, &[me])
        .await?
        .pop()
        .ok_or_else(Error::unauthenticated)?;
    let last_login: Option<Timestamp> = on!(conn, |c| sessions::table
        .filter(sessions::user_id.eq(me))
        .select(diesel::dsl::max(sessions::created_at))
        .first(c)
        .await)?;
    let account = json!({
        "id": user.id,
        "email": user.email,
        "username": user.username,
        "displayName": user.display_name,
        "role": if user.role == Role::Admin { "ADMIN" } else { "USER" },
        "isActive": user.is_active,
        "emailVerified": user.email_verified,
        "assignmentEmails": user.assignment_emails,
        "lastLoginAt": last_login.max(user.last_login_at),
        "createdAt": user.created_at,
        "updatedAt": user.updated_at,
    });
    let mut document = JsonWriter(Vec::new());
    document.member("account");
    document.value(&account);
    rows!(document, conn, "sessions", sessions by created_at, sessions::user_id.eq(me), |session: Session| &json!({
        "id": session.id,
        "createdAt": session.created_at,
        "lastUsedAt": session.last_used_at,
        "expiresAt": session.expires_at,
        "revokedAt": session.revoked_at,
        "ipAddress": session.ip_address,
        "lastIpAddress": session.last_ip_address,
        "userAgent": session.user_agent,
    }));
    let changes = email_changes::user_id.eq(me);
    rows!(document, conn, "emailChanges", email_changes by requested_at, changes, |change: EmailChange| &json!({
        "from": change.email,
        "requestedAt": change.requested_at,
        "expiresAt": change.expires_at,
    }));
    let changes = username_changes::user_id.eq(me);
    rows!(document, conn, "usernameChanges", username_changes by changed_at, changes, |change: UsernameChange| &json!({
        "from": change.username_key,
        "changedAt": change.changed_at,
        "expiresAt": change.expires_at,
    }));
    rows!(document, conn, "projects", projects by created_at, projects::owner_id.eq(me), |project: Project| project);
    let theirs = projects::table
        .filter(projects::owner_id.eq(me))
        .select(projects::id);
    rows!(document, conn, "labels", labels by created_at, labels::project_id.eq_any(theirs), |label: Label| &json!({
        "id": label.id,
        "projectId": label.project_id,
        "name": label.name,
        "color": label.color,
    }));
    // Others may have changed a task after its creator lost access to it. So the export has only
    // tasks that the viewer may see now. The condition filters the rows again, because access may
    // end between the two reads.
    let visible = || {
        let is_admin = exists(
            users::table
                .filter(users::id.eq(me))
                .filter(users::role.eq(Role::Admin)),
        );
        tasks::owner_id
            .eq(me)
            .or(tasks::assignee_id.eq(me))
            .or(tasks::creator_id.eq(me).and(is_admin))
    };
    rows!(document, conn, "tasks", tasks by created_at, visible(), and visible(), |task: Task| task);
    // A comment is the viewer's own text, which nobody else can change.
    rows!(document, conn, "comments", comments by created_at, comments::author_id.eq(me), |comment: Comment| comment);
    let inbox = notifications::user_id.eq(me);
    rows!(document, conn, "notifications", notifications by occurred_at, inbox, and inbox, |row: Notification| row);
    let about = audit_entries::user_id.eq(me);
    rows!(document, conn, "securityLog", audit_entries by occurred_at, about, |entry: Entry| &entry.clone().redacted_for(viewer));
    document.0.push(b'}');
    Ok(document.0)
}
