DROP INDEX notifications_inbox;
ALTER TABLE notifications DROP CONSTRAINT notifications_pkey;
ALTER TABLE notifications DROP COLUMN is_read;
ALTER TABLE notifications ADD PRIMARY KEY (user_id, occurred_at, id);
CREATE UNIQUE INDEX notifications_id ON notifications (id, user_id);
CREATE INDEX notifications_unread ON notifications (user_id, occurred_at, id) WHERE read_at IS NULL;
DROP INDEX tasks_project_updated_at;
CREATE INDEX tasks_project_updated_at ON tasks (project_id, updated_at, id);
CREATE INDEX tasks_project_status ON tasks (project_id, status, due_at);
