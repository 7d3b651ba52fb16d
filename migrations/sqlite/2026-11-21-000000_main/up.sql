-- Ids are 16-byte blobs, times INTEGER microseconds since 1970-01-01 UTC.

CREATE TABLE users (
    id            BLOB PRIMARY KEY,
    email         TEXT NOT NULL,
    email_key     TEXT NOT NULL UNIQUE,
    username      TEXT NOT NULL,
    username_key  TEXT NOT NULL UNIQUE,
    display_name  TEXT NOT NULL,
    search        TEXT NOT NULL,
    password_hash TEXT NOT NULL,
    role          INTEGER NOT NULL CHECK (role IN (0, 1)),
    is_active     INTEGER NOT NULL,
    email_verified INTEGER NOT NULL,
    last_login_at INTEGER,
    deleted_at    INTEGER,
    created_at    INTEGER NOT NULL,
    updated_at    INTEGER NOT NULL
) STRICT;
CREATE INDEX users_created_at ON users (created_at, id);
CREATE INDEX users_username ON users (username_key, id);

-- One row per login, with its family of refresh tokens. `seed` and `generation` derive the only
-- valid refresh token; without the server's key nothing stored here can be used as a token.
CREATE TABLE sessions (
    id           BLOB PRIMARY KEY,
    user_id      BLOB NOT NULL REFERENCES users ON DELETE CASCADE,
    seed         BLOB NOT NULL,
    generation   INTEGER NOT NULL,
    rotated_at   INTEGER NOT NULL,
    created_at   INTEGER NOT NULL,
    last_used_at INTEGER NOT NULL,
    expires_at   INTEGER NOT NULL,
    revoked_at   INTEGER,
    ip_address   TEXT,
    user_agent   TEXT
) STRICT;
CREATE INDEX sessions_user ON sessions (user_id, created_at);
CREATE INDEX sessions_expires ON sessions (expires_at);

CREATE TABLE projects (
    id          BLOB PRIMARY KEY,
    owner_id    BLOB NOT NULL REFERENCES users,
    name        TEXT NOT NULL,
    name_key    TEXT NOT NULL,
    description TEXT,
    search      TEXT NOT NULL,
    status      INTEGER NOT NULL CHECK (status IN (0, 1)),
    version     INTEGER NOT NULL,
    created_at  INTEGER NOT NULL,
    updated_at  INTEGER NOT NULL
) STRICT;
CREATE INDEX projects_created_at ON projects (created_at, id);
CREATE INDEX projects_updated_at ON projects (updated_at, id);
CREATE INDEX projects_name ON projects (name_key, id);
CREATE INDEX projects_owner_created_at ON projects (owner_id, created_at, id);
CREATE INDEX projects_owner_updated_at ON projects (owner_id, updated_at, id);
CREATE INDEX projects_owner_name ON projects (owner_id, name_key, id);

-- `owner_id` copies the project's owner, which never changes, so that the tasks visible to a user
-- are two index ranges. `due_order` sorts tasks without a due date last, in an index.
CREATE TABLE tasks (
    id           BLOB PRIMARY KEY,
    project_id   BLOB NOT NULL REFERENCES projects ON DELETE CASCADE,
    owner_id     BLOB NOT NULL REFERENCES users,
    creator_id   BLOB REFERENCES users ON DELETE SET NULL,
    assignee_id  BLOB REFERENCES users ON DELETE SET NULL,
    title        TEXT NOT NULL,
    description  TEXT,
    search       TEXT NOT NULL,
    status       INTEGER NOT NULL CHECK (status IN (0, 1, 2)),
    priority     INTEGER NOT NULL CHECK (priority IN (0, 1, 2, 3)),
    due_at       INTEGER,
    due_order    INTEGER NOT NULL GENERATED ALWAYS AS (coalesce(due_at, 9223372036854775807)) STORED,
    completed_at INTEGER,
    version      INTEGER NOT NULL,
    created_at   INTEGER NOT NULL,
    updated_at   INTEGER NOT NULL
) STRICT;
CREATE INDEX tasks_created_at ON tasks (created_at, id);
CREATE INDEX tasks_updated_at ON tasks (updated_at, id);
CREATE INDEX tasks_due ON tasks (due_order, id);
CREATE INDEX tasks_priority ON tasks (priority, id);
CREATE INDEX tasks_project_created_at ON tasks (project_id, created_at, id);
CREATE INDEX tasks_project_updated_at ON tasks (project_id, updated_at, id);
CREATE INDEX tasks_project_due ON tasks (project_id, due_order, id);
CREATE INDEX tasks_project_priority ON tasks (project_id, priority, id);
CREATE INDEX tasks_project_status ON tasks (project_id, status, due_at);
CREATE INDEX tasks_owner_created_at ON tasks (owner_id, created_at, id);
CREATE INDEX tasks_owner_updated_at ON tasks (owner_id, updated_at, id);
CREATE INDEX tasks_owner_due ON tasks (owner_id, due_order, id);
CREATE INDEX tasks_owner_priority ON tasks (owner_id, priority, id);
CREATE INDEX tasks_assignee_created_at ON tasks (assignee_id, created_at, id);
CREATE INDEX tasks_assignee_updated_at ON tasks (assignee_id, updated_at, id);
CREATE INDEX tasks_assignee_due ON tasks (assignee_id, due_order, id);
CREATE INDEX tasks_assignee_priority ON tasks (assignee_id, priority, id);

CREATE TABLE labels (
    id         BLOB PRIMARY KEY,
    project_id BLOB NOT NULL REFERENCES projects ON DELETE CASCADE,
    name       TEXT NOT NULL,
    name_key   TEXT NOT NULL,
    color      TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    UNIQUE (project_id, name_key)
) STRICT;

CREATE TABLE task_labels (
    task_id  BLOB NOT NULL REFERENCES tasks ON DELETE CASCADE,
    label_id BLOB NOT NULL REFERENCES labels ON DELETE CASCADE,
    PRIMARY KEY (task_id, label_id)
) STRICT;
CREATE INDEX task_labels_label ON task_labels (label_id);

CREATE TABLE comments (
    id         BLOB PRIMARY KEY,
    task_id    BLOB NOT NULL REFERENCES tasks ON DELETE CASCADE,
    author_id  BLOB NOT NULL REFERENCES users,
    body       TEXT NOT NULL,
    is_edited  INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;
CREATE INDEX comments_task ON comments (task_id, created_at, id);
CREATE INDEX comments_author ON comments (author_id);

-- The event log (transactional outbox): written in the transaction of the change. With one writer,
-- row order is commit order. `xid` is always 0; it gives cursors the same form on both databases.
-- No foreign keys: events outlive their subjects.
CREATE TABLE events (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    xid         INTEGER NOT NULL DEFAULT 0,
    id          BLOB NOT NULL,
    kind        INTEGER NOT NULL,
    occurred_at INTEGER NOT NULL,
    actor_id    BLOB,
    owner_id    BLOB,
    project_id  BLOB,
    task_id     BLOB,
    comment_id  BLOB,
    assignee_id BLOB,
    previous_assignee_id BLOB,
    session_id  BLOB,
    data        TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX events_position ON events (xid, seq);
CREATE UNIQUE INDEX events_id ON events (id);
CREATE INDEX events_task ON events (task_id, xid, seq);
CREATE INDEX events_owner ON events (owner_id, xid, seq);
CREATE INDEX events_occurred_at ON events (occurred_at);

-- The queue of outgoing mail, written in the transaction of the change. Text and tokens are
-- generated at delivery, so no usable token is stored.
CREATE TABLE mails (
    id              BLOB PRIMARY KEY,
    kind            INTEGER NOT NULL,
    recipient       TEXT NOT NULL,
    user_id         BLOB,
    data            TEXT NOT NULL,
    created_at      INTEGER NOT NULL,
    next_attempt_at INTEGER NOT NULL,
    attempts        INTEGER NOT NULL,
    last_error      TEXT
) STRICT;
CREATE INDEX mails_next_attempt ON mails (next_attempt_at);

-- The newest mailed token per user and purpose, as a SHA-256 hash.
CREATE TABLE mail_tokens (
    user_id    BLOB NOT NULL REFERENCES users ON DELETE CASCADE,
    purpose    INTEGER NOT NULL,
    hash       BLOB NOT NULL UNIQUE,
    email      TEXT NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (user_id, purpose)
) STRICT;

-- Failed logins by identifier and source, so that a stranger elsewhere cannot lock out the owner.
CREATE TABLE login_failures (
    identifier   TEXT NOT NULL,
    source       TEXT NOT NULL,
    failures     INTEGER NOT NULL,
    failed_at    INTEGER NOT NULL,
    locked_until INTEGER,
    PRIMARY KEY (identifier, source)
) STRICT;
CREATE INDEX login_failures_failed_at ON login_failures (failed_at);

-- The audit log of accounts. No foreign keys: entries outlive their subjects.
CREATE TABLE audit_entries (
    id          BLOB PRIMARY KEY,
    kind        INTEGER NOT NULL,
    occurred_at INTEGER NOT NULL,
    user_id     BLOB,
    actor_id    BLOB,
    ip_address  TEXT,
    user_agent  TEXT
) STRICT;
CREATE INDEX audit_entries_occurred_at ON audit_entries (occurred_at, id);
CREATE INDEX audit_entries_user ON audit_entries (user_id, occurred_at, id);
