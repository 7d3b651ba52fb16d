-- The row is the place in the log: an index of it would be the table once more, and one that is chosen where another
-- leads to fewer rows.
DROP INDEX events_position;
-- No event is looked up by its id.
DROP INDEX events_id;

-- Each change of a task notifies two people: an inbox is kept in the order in which it is read, and by ids, which grow
-- with time, so that most of what is written for one comes beside what was written before. Accounts are never deleted
-- but emptied, and nothing is written for one that is: no foreign key says it again.
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
