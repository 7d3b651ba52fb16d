-- No event is looked up by its id.
DROP INDEX events_id;

-- Each change of a task notifies two people: an inbox is kept in the order in which it is read, and by ids, which grow
-- with time, so that most of what is written for one comes beside what was written before. Accounts are never deleted
-- but emptied, and nothing is written for one that is: no foreign key says it again.
ALTER TABLE notifications DROP CONSTRAINT notifications_user_id_fkey, DROP CONSTRAINT notifications_pkey;
ALTER TABLE notifications ADD PRIMARY KEY (user_id, occurred_at, id);
DROP INDEX notifications_user;
CREATE UNIQUE INDEX notifications_id ON notifications (id, user_id);
-- Rows come in the order of time: one entry for many pages leads to the old ones.
DROP INDEX notifications_occurred_at;
CREATE INDEX notifications_occurred_at ON notifications USING brin (occurred_at);
