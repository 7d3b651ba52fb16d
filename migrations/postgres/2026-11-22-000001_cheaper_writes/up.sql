-- Task statistics of a project are counted from the index that sorting by update needs anyway.
DROP INDEX tasks_project_status;
DROP INDEX tasks_project_updated_at;
CREATE INDEX tasks_project_updated_at ON tasks (project_id, updated_at, id) INCLUDE (status, due_at);

-- Read and unread notifications are two ranges of one index. The rows are stored in order of id.
ALTER TABLE notifications ADD COLUMN is_read boolean NOT NULL GENERATED ALWAYS AS (read_at IS NOT NULL) STORED;
ALTER TABLE notifications DROP CONSTRAINT notifications_pkey;
DROP INDEX notifications_unread, notifications_id;
ALTER TABLE notifications ADD PRIMARY KEY (id, user_id);
CREATE INDEX notifications_inbox ON notifications (user_id, is_read, occurred_at, id);
