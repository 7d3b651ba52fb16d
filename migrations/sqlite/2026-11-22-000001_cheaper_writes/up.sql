-- Task statistics of a project are counted from the index that sorting by update needs anyway.
DROP INDEX tasks_project_status;
DROP INDEX tasks_project_updated_at;
CREATE INDEX tasks_project_updated_at ON tasks (project_id, updated_at, id, status, due_at);

-- Read and unread notifications are two ranges of one index. The rows are stored in order of id.
ALTER TABLE notifications RENAME TO notifications_before;
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
    is_read     INTEGER NOT NULL GENERATED ALWAYS AS (read_at IS NOT NULL) STORED,
    PRIMARY KEY (id, user_id)
) STRICT, WITHOUT ROWID;
INSERT INTO notifications (user_id, id, kind, occurred_at, actor_id, task_id, comment_id, xid, seq, read_at)
    SELECT user_id, id, kind, occurred_at, actor_id, task_id, comment_id, xid, seq, read_at FROM notifications_before;
DROP TABLE notifications_before;
CREATE INDEX notifications_inbox ON notifications (user_id, is_read, occurred_at, id);
CREATE INDEX notifications_occurred_at ON notifications (occurred_at);
