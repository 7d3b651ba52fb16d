-- The retention horizon: events up to this position have expired.
INSERT INTO projections (name, xid, seq) VALUES ('floor', 0, 0);

-- Expired events are found by position, not by time.
DROP INDEX events_occurred_at;
