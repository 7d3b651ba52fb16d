ALTER TABLE notifications RENAME TO notifications_after;
CREATE TABLE notifications (
    user_id     BLOB NOT NULL,
    id          BLOB NOT NULL,
    kind        INTEGER NOT NULL,
    occurred_at INTEGER NOT NULL,
    actor_id    BLOB,
    task_id     BLOB,
    comment_id  BLOB,
    xid         INTEGER NOT NULL,
    seq         INTEGER NOT NULL,
    read_at     INTEGER,
    PRIMARY KEY (user_id, occurred_at, id)
) STRICT, WITHOUT ROWID;
INSERT INTO notifications
    SELECT user_id, id, kind, occurred_at, actor_id, task_id, comment_id, xid, seq, read_at FROM notifications_after;
DROP TABLE notifications_after;
CREATE UNIQUE INDEX notifications_id ON notifications (id, user_id);
CREATE INDEX notifications_unread ON notifications (user_id, occurred_at, id) WHERE read_at IS NULL;
CREATE INDEX notifications_occurred_at ON notifications (occurred_at);
DROP INDEX tasks_project_updated_at;
CREATE INDEX tasks_project_updated_at ON tasks (project_id, updated_at, id);
CREATE INDEX tasks_project_status ON tasks (project_id, status, due_at);
