//! The tables, declared once for both databases with the types of [`super::types::sql`].

#![allow(
    missing_docs,
    reason = "`table!` generates items that cannot be documented"
)]

use diesel::allow_tables_to_appear_in_same_query;
use diesel::prelude::*;

table! {
    use crate::db::types::sql::*;
    users (id) {
        id -> Uuid,
        email -> Text,
        email_key -> Text,
        username -> Text,
        username_key -> Text,
        display_name -> Text,
        search -> Text,
        password_hash -> Text,
        role -> SmallInt,
        is_active -> Bool,
        email_verified -> Bool,
        last_login_at -> Nullable<Instant>,
        deleted_at -> Nullable<Instant>,
        created_at -> Instant,
        updated_at -> Instant,
        assignment_emails -> Bool,
    }
}

table! {
    use crate::db::types::sql::*;
    sessions (id) {
        id -> Uuid,
        user_id -> Uuid,
        seed -> Binary,
        generation -> Integer,
        rotated_at -> Instant,
        created_at -> Instant,
        last_used_at -> Instant,
        expires_at -> Instant,
        revoked_at -> Nullable<Instant>,
        ip_address -> Nullable<Text>,
        user_agent -> Nullable<Text>,
        last_ip_address -> Nullable<Text>,
    }
}

table! {
    use crate::db::types::sql::*;
    projects (id) {
        id -> Uuid,
        owner_id -> Uuid,
        name -> Text,
        name_key -> Text,
        description -> Nullable<Text>,
        search -> Text,
        status -> SmallInt,
        version -> Integer,
        created_at -> Instant,
        updated_at -> Instant,
    }
}

table! {
    use crate::db::types::sql::*;
    tasks (id) {
        id -> Uuid,
        project_id -> Uuid,
        owner_id -> Uuid,
        creator_id -> Nullable<Uuid>,
        assignee_id -> Nullable<Uuid>,
        title -> Text,
        description -> Nullable<Text>,
        search -> Text,
        status -> SmallInt,
        priority -> SmallInt,
        due_at -> Nullable<Instant>,
        due_order -> Instant,
        completed_at -> Nullable<Instant>,
        version -> Integer,
        created_at -> Instant,
        updated_at -> Instant,
    }
}

table! {
    use crate::db::types::sql::*;
    labels (id) {
        id -> Uuid,
        project_id -> Uuid,
        name -> Text,
        name_key -> Text,
        color -> Text,
        created_at -> Instant,
    }
}

table! {
    use crate::db::types::sql::*;
    task_labels (task_id, label_id) {
        task_id -> Uuid,
        label_id -> Uuid,
    }
}

table! {
    use crate::db::types::sql::*;
    comments (id) {
        id -> Uuid,
        task_id -> Uuid,
        author_id -> Uuid,
        body -> Text,
        is_edited -> Bool,
        created_at -> Instant,
        updated_at -> Instant,
    }
}

table! {
    use crate::db::types::sql::*;
    events (seq) {
        seq -> BigInt,
        xid -> BigInt,
        id -> Uuid,
        kind -> SmallInt,
        occurred_at -> Instant,
        actor_id -> Nullable<Uuid>,
        owner_id -> Nullable<Uuid>,
        project_id -> Nullable<Uuid>,
        task_id -> Nullable<Uuid>,
        comment_id -> Nullable<Uuid>,
        assignee_id -> Nullable<Uuid>,
        previous_assignee_id -> Nullable<Uuid>,
        session_id -> Nullable<Uuid>,
        data -> Text,
    }
}

table! {
    use crate::db::types::sql::*;
    history_texts (object_id, id) {
        object_id -> Uuid,
        id -> Uuid,
        owner_id -> Uuid,
        event_id -> Uuid,
        body -> Text,
    }
}

table! {
    use crate::db::types::sql::*;
    user_usage (user_id) {
        user_id -> Uuid,
        projects -> BigInt,
        text_bytes -> BigInt,
    }
}

table! {
    use crate::db::types::sql::*;
    project_usage (project_id) {
        project_id -> Uuid,
        tasks -> BigInt,
    }
}

table! {
    use crate::db::types::sql::*;
    task_usage (task_id) {
        task_id -> Uuid,
        comments -> BigInt,
        text_bytes -> BigInt,
    }
}

table! {
    use crate::db::types::sql::*;
    mails (id) {
        id -> Uuid,
        kind -> SmallInt,
        recipient -> Text,
        user_id -> Nullable<Uuid>,
        data -> Text,
        created_at -> Instant,
        next_attempt_at -> Instant,
        attempts -> Integer,
        last_error -> Nullable<Text>,
    }
}

table! {
    use crate::db::types::sql::*;
    mail_tokens (hash) {
        user_id -> Uuid,
        purpose -> SmallInt,
        hash -> Binary,
        email -> Text,
        expires_at -> Instant,
    }
}

table! {
    use crate::db::types::sql::*;
    mail_quota (id) {
        id -> Uuid,
        recipient -> Binary,
        kind -> SmallInt,
        sender_id -> Nullable<Uuid>,
        counted_at -> Instant,
    }
}

table! {
    use crate::db::types::sql::*;
    email_changes (id) {
        id -> Uuid,
        user_id -> Uuid,
        email -> Text,
        email_key -> Text,
        was_verified -> Bool,
        requested_at -> Instant,
        expires_at -> Instant,
    }
}

table! {
    use crate::db::types::sql::*;
    username_changes (id) {
        id -> Uuid,
        user_id -> Uuid,
        username_key -> Text,
        changed_at -> Instant,
        expires_at -> Instant,
    }
}

table! {
    use crate::db::types::sql::*;
    login_failures (identifier, source) {
        identifier -> Text,
        source -> Text,
        failures -> Integer,
        failed_at -> Instant,
        locked_until -> Nullable<Instant>,
    }
}

table! {
    use crate::db::types::sql::*;
    audit_entries (id) {
        id -> Uuid,
        kind -> SmallInt,
        occurred_at -> Instant,
        user_id -> Nullable<Uuid>,
        actor_id -> Nullable<Uuid>,
        ip_address -> Nullable<Text>,
        user_agent -> Nullable<Text>,
    }
}

table! {
    use crate::db::types::sql::*;
    notifications (id, user_id) {
        user_id -> Uuid,
        id -> Uuid,
        kind -> SmallInt,
        occurred_at -> Instant,
        actor_id -> Nullable<Uuid>,
        task_id -> Nullable<Uuid>,
        comment_id -> Nullable<Uuid>,
        xid -> BigInt,
        seq -> BigInt,
        read_at -> Nullable<Instant>,
        is_read -> Bool,
    }
}

table! {
    use crate::db::types::sql::*;
    projections (name) {
        name -> Text,
        xid -> BigInt,
        seq -> BigInt,
    }
}

allow_tables_to_appear_in_same_query!(
    users,
    sessions,
    projects,
    tasks,
    labels,
    task_labels,
    comments,
    events,
    history_texts,
    user_usage,
    project_usage,
    task_usage,
    mails,
    mail_tokens,
    mail_quota,
    email_changes,
    username_changes,
    login_failures,
    audit_entries,
    notifications,
    projections,
);
joinable!(sessions -> users (user_id));
joinable!(task_labels -> labels (label_id));
joinable!(mail_tokens -> users (user_id));
