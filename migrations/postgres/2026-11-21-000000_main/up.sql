-- Columns that are compared or ordered are COLLATE "C": byte order as on SQLite, for any locale.

CREATE TABLE users (
    id            uuid PRIMARY KEY,
    email         text NOT NULL,
    email_key     text COLLATE "C" NOT NULL UNIQUE,
    username      text NOT NULL,
    username_key  text COLLATE "C" NOT NULL UNIQUE,
    display_name  text NOT NULL,
    search        text COLLATE "C" NOT NULL,
    password_hash text NOT NULL,
    role          smallint NOT NULL CHECK (role IN (0, 1)),
    is_active     boolean NOT NULL,
    email_verified boolean NOT NULL,
    last_login_at timestamptz,
    deleted_at    timestamptz,
    created_at    timestamptz NOT NULL,
    updated_at    timestamptz NOT NULL
);
CREATE INDEX users_created_at ON users (created_at, id);
CREATE INDEX users_username ON users (username_key, id);

-- One row per login, with its family of refresh tokens. `seed` and `generation` derive the only
-- valid refresh token; without the server's key nothing stored here can be used as a token.
CREATE TABLE sessions (
    id           uuid PRIMARY KEY,
    user_id      uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    seed         bytea NOT NULL,
    generation   integer NOT NULL,
    rotated_at   timestamptz NOT NULL,
    created_at   timestamptz NOT NULL,
    last_used_at timestamptz NOT NULL,
    expires_at   timestamptz NOT NULL,
    revoked_at   timestamptz,
    ip_address   text,
    user_agent   text
);
CREATE INDEX sessions_user ON sessions (user_id, created_at);
CREATE INDEX sessions_expires ON sessions (expires_at);

CREATE TABLE projects (
    id          uuid PRIMARY KEY,
    owner_id    uuid NOT NULL REFERENCES users,
    name        text NOT NULL,
    name_key    text COLLATE "C" NOT NULL,
    description text,
    search      text COLLATE "C" NOT NULL,
    status      smallint NOT NULL CHECK (status IN (0, 1)),
    version     integer NOT NULL,
    created_at  timestamptz NOT NULL,
    updated_at  timestamptz NOT NULL
);
CREATE INDEX projects_created_at ON projects (created_at, id);
CREATE INDEX projects_updated_at ON projects (updated_at, id);
CREATE INDEX projects_name ON projects (name_key, id);
CREATE INDEX projects_owner_created_at ON projects (owner_id, created_at, id);
CREATE INDEX projects_owner_updated_at ON projects (owner_id, updated_at, id);
CREATE INDEX projects_owner_name ON projects (owner_id, name_key, id);

-- `owner_id` copies the project's owner, which never changes, so that the tasks visible to a user
-- are two index ranges. `due_order` sorts tasks without a due date last, in an index.
CREATE TABLE tasks (
    id           uuid PRIMARY KEY,
    project_id   uuid NOT NULL REFERENCES projects ON DELETE CASCADE,
    owner_id     uuid NOT NULL REFERENCES users,
    creator_id   uuid REFERENCES users ON DELETE SET NULL,
    assignee_id  uuid REFERENCES users ON DELETE SET NULL,
    title        text NOT NULL,
    description  text,
    search       text COLLATE "C" NOT NULL,
    status       smallint NOT NULL CHECK (status IN (0, 1, 2)),
    priority     smallint NOT NULL CHECK (priority IN (0, 1, 2, 3)),
    due_at       timestamptz,
    due_order    timestamptz NOT NULL GENERATED ALWAYS AS (coalesce(due_at, 'infinity'::timestamptz)) STORED,
    completed_at timestamptz,
    version      integer NOT NULL,
    created_at   timestamptz NOT NULL,
    updated_at   timestamptz NOT NULL
);
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
    id         uuid PRIMARY KEY,
    project_id uuid NOT NULL REFERENCES projects ON DELETE CASCADE,
    name       text NOT NULL,
    name_key   text COLLATE "C" NOT NULL,
    color      text NOT NULL,
    created_at timestamptz NOT NULL,
    UNIQUE (project_id, name_key)
);

CREATE TABLE task_labels (
    task_id  uuid NOT NULL REFERENCES tasks ON DELETE CASCADE,
    label_id uuid NOT NULL REFERENCES labels ON DELETE CASCADE,
    PRIMARY KEY (task_id, label_id)
);
CREATE INDEX task_labels_label ON task_labels (label_id);

CREATE TABLE comments (
    id         uuid PRIMARY KEY,
    task_id    uuid NOT NULL REFERENCES tasks ON DELETE CASCADE,
    author_id  uuid NOT NULL REFERENCES users,
    body       text NOT NULL,
    is_edited  boolean NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);
CREATE INDEX comments_task ON comments (task_id, created_at, id);
CREATE INDEX comments_author ON comments (author_id);

-- The event log (transactional outbox): written in the transaction of the change.
-- Readers order by (xid, seq) and stop below the oldest open transaction, so a slow writer is never
-- skipped. A transaction that waited for another may have the lower id but appends later; it then
-- stores the id of the newest ended transaction, so that its events sort after those it waited for.
-- No foreign keys: events outlive their subjects.
CREATE TABLE events (
    seq         bigserial PRIMARY KEY,
    xid         bigint NOT NULL DEFAULT greatest(pg_current_xact_id()::text::bigint,
                                                 pg_snapshot_xmax(pg_current_snapshot())::text::bigint - 1),
    id          uuid NOT NULL,
    kind        smallint NOT NULL,
    occurred_at timestamptz NOT NULL,
    actor_id    uuid,
    owner_id    uuid,
    project_id  uuid,
    task_id     uuid,
    comment_id  uuid,
    assignee_id uuid,
    previous_assignee_id uuid,
    session_id  uuid,
    data        text NOT NULL
);
CREATE UNIQUE INDEX events_position ON events (xid, seq);
CREATE UNIQUE INDEX events_id ON events (id);
CREATE INDEX events_task ON events (task_id, xid, seq);
CREATE INDEX events_owner ON events (owner_id, xid, seq);
CREATE INDEX events_occurred_at ON events (occurred_at);

-- The queue of outgoing mail, written in the transaction of the change. Text and tokens are
-- generated at delivery, so no usable token is stored.
CREATE TABLE mails (
    id              uuid PRIMARY KEY,
    kind            smallint NOT NULL,
    recipient       text NOT NULL,
    user_id         uuid,
    data            text NOT NULL,
    created_at      timestamptz NOT NULL,
    next_attempt_at timestamptz NOT NULL,
    attempts        integer NOT NULL,
    last_error      text
);
CREATE INDEX mails_next_attempt ON mails (next_attempt_at);

-- The newest mailed token per user and purpose, as a SHA-256 hash.
CREATE TABLE mail_tokens (
    user_id    uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    purpose    smallint NOT NULL,
    hash       bytea NOT NULL UNIQUE,
    email      text NOT NULL,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (user_id, purpose)
);

-- Failed logins by identifier and source, so that a stranger elsewhere cannot lock out the owner.
CREATE TABLE login_failures (
    identifier   text COLLATE "C" NOT NULL,
    source       text COLLATE "C" NOT NULL,
    failures     integer NOT NULL,
    failed_at    timestamptz NOT NULL,
    locked_until timestamptz,
    PRIMARY KEY (identifier, source)
);
CREATE INDEX login_failures_failed_at ON login_failures (failed_at);

-- The audit log of accounts. No foreign keys: entries outlive their subjects.
CREATE TABLE audit_entries (
    id          uuid PRIMARY KEY,
    kind        smallint NOT NULL,
    occurred_at timestamptz NOT NULL,
    user_id     uuid,
    actor_id    uuid,
    ip_address  text,
    user_agent  text
);
CREATE INDEX audit_entries_occurred_at ON audit_entries (occurred_at, id);
CREATE INDEX audit_entries_user ON audit_entries (user_id, occurred_at, id);
