DROP INDEX notifications_occurred_at;
CREATE INDEX notifications_occurred_at ON notifications (occurred_at);
DROP INDEX notifications_id;
CREATE INDEX notifications_user ON notifications (user_id, occurred_at, id);
ALTER TABLE notifications DROP CONSTRAINT notifications_pkey;
ALTER TABLE notifications ADD PRIMARY KEY (user_id, id);
ALTER TABLE notifications ADD FOREIGN KEY (user_id) REFERENCES users ON DELETE CASCADE;
CREATE UNIQUE INDEX events_id ON events (id);
