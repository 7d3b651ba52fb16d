-- No query finds events by id.
DROP INDEX events_id;

-- Each change of a task notifies up to two users, so writes must be cheap. An inbox is stored in
-- the order in which it is read, and ids grow with time, so new rows are close to recent ones. No
-- foreign key to users: accounts are anonymized, never deleted.
ALTER TABLE notifications DROP CONSTRAINT notifications_user_id_fkey, DROP CONSTRAINT notifications_pkey;
ALTER TABLE notifications ADD PRIMARY KEY (user_id, occurred_at, id);
DROP INDEX notifications_user;
CREATE UNIQUE INDEX notifications_id ON notifications (id, user_id);
-- Rows arrive in order of time, so a small BRIN index finds the old ones.
DROP INDEX notifications_occurred_at;
CREATE INDEX notifications_occurred_at ON notifications USING brin (occurred_at);
