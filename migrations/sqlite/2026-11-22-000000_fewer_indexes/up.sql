-- The rowid is the position. An index on it duplicates the table, and the planner prefers it to
-- more selective indexes.
DROP INDEX events_position;
-- No query finds events by id.
DROP INDEX events_id;

-- Each change of a task notifies up to two users, so writes must be cheap. An inbox is stored in
-- the order in which it is read, and ids grow with time, so new rows are close to recent ones. No
-- foreign key to users: accounts are anonymized, never deleted.
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
    PRIMARY KEY (user_id, occurred_at, id)
) STRICT, WITHOUT ROWID;
INSERT INTO notifications SELECT * FROM notifications_before;
DROP TABLE notifications_before;
CREATE UNIQUE INDEX notifications_id ON notifications (id, user_id);
CREATE INDEX notifications_unread ON notifications (user_id, occurred_at, id) WHERE read_at IS NULL;
CREATE INDEX notifications_occurred_at ON notifications (occurred_at);
