-- How far the feed of events goes back: what is up to this place has expired.
INSERT INTO projections (name, xid, seq) VALUES ('floor', 0, 0);

-- Expired events are found by their place, not by their time.
DROP INDEX events_occurred_at;
