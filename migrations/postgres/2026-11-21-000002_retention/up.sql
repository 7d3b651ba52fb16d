-- How far the feed of events goes back: what is up to this place has expired.
INSERT INTO projections (name, xid, seq) VALUES ('floor', 0, 0);

-- Expired events are found by their place, not by their time.
DROP INDEX events_occurred_at;

-- A server counts transactions from its own beginning. This is added to the count, so that a log that was restored on
-- another server goes on after its end; the program replaces it when it finds that to be so.
CREATE FUNCTION events_epoch() RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT 0::bigint';
ALTER TABLE events ALTER COLUMN xid SET DEFAULT
    events_epoch() + greatest(pg_current_xact_id()::text::bigint, pg_snapshot_xmax(pg_current_snapshot())::text::bigint - 1);
