-- What somebody still sees of a task that they see no more: its deletion, and that it was taken from them.
CREATE INDEX events_deleted ON events (assignee_id, xid, seq) WHERE kind = 3;
CREATE INDEX events_unassigned ON events (previous_assignee_id, xid, seq) WHERE kind = 5;
