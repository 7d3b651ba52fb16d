ALTER TABLE notifications RENAME TO notifications_after;
CREATE TABLE notifications (
    user_id     BLOB NOT NULL REFERENCES users ON DELETE CASCADE,
    id          BLOB NOT NULL,
    kind        INTEGER NOT NULL,
    occurred_at INTEGER NOT NULL,
    actor_id    BLOB,
    task_id     BLOB,
    comment_id  BLOB,
    xid         INTEGER NOT NULL,
    seq         INTEGER NOT NULL,
    read_at     INTEGER,
    PRIMARY KEY (user_id, id)
) STRICT;
INSERT INTO notifications SELECT * FROM notifications_after;
DROP TABLE notifications_after;
CREATE INDEX notifications_user ON notifications (user_id, occurred_at, id);
CREATE INDEX notifications_unread ON notifications (user_id, occurred_at, id) WHERE read_at IS NULL;
CREATE INDEX notifications_occurred_at ON notifications (occurred_at);
CREATE UNIQUE INDEX events_position ON events (xid, seq);
CREATE UNIQUE INDEX events_id ON events (id);
