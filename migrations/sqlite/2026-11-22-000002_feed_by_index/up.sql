-- Events that former assignees may still see: the deletion of a task, and their unassignment.
CREATE INDEX events_deleted ON events (assignee_id, xid, seq) WHERE kind = 3;
CREATE INDEX events_unassigned ON events (previous_assignee_id, xid, seq) WHERE kind = 5;
