-- The inboxes, derived from the event log. `id` is the id of the event, `xid` and `seq` its
-- position. No foreign keys to the subjects: notifications outlive them, and visibility is checked
-- on reading.
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
CREATE INDEX notifications_user ON notifications (user_id, occurred_at, id);
CREATE INDEX notifications_unread ON notifications (user_id, occurred_at, id) WHERE read_at IS NULL;
CREATE INDEX notifications_occurred_at ON notifications (occurred_at);

-- The offsets of the consumers of the event log.
CREATE TABLE projections (
    name TEXT PRIMARY KEY,
    xid  INTEGER NOT NULL,
    seq  INTEGER NOT NULL
) STRICT;
INSERT INTO projections (name, xid, seq) VALUES ('notifications', 0, 0);
