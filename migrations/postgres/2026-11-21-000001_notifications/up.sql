-- The inboxes, derived from the event log. `id` is the id of the event, `xid` and `seq` its
-- position. No foreign keys to the subjects: notifications outlive them, and visibility is checked
-- on reading.
CREATE TABLE notifications (
    user_id     uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    id          uuid NOT NULL,
    kind        smallint NOT NULL,
    occurred_at timestamptz NOT NULL,
    actor_id    uuid,
    task_id     uuid,
    comment_id  uuid,
    xid         bigint NOT NULL,
    seq         bigint NOT NULL,
    read_at     timestamptz,
    PRIMARY KEY (user_id, id)
);
CREATE INDEX notifications_user ON notifications (user_id, occurred_at, id);
CREATE INDEX notifications_unread ON notifications (user_id, occurred_at, id) WHERE read_at IS NULL;
CREATE INDEX notifications_occurred_at ON notifications (occurred_at);

-- The offsets of the consumers of the event log.
CREATE TABLE projections (
    name text COLLATE "C" PRIMARY KEY,
    xid  bigint NOT NULL,
    seq  bigint NOT NULL
);
INSERT INTO projections (name, xid, seq) VALUES ('notifications', 0, 0);
