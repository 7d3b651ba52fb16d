-- The retention horizon: events up to this position have expired.
INSERT INTO projections (name, xid, seq) VALUES ('floor', 0, 0);

-- Expired events are found by position, not by time.
DROP INDEX events_occurred_at;

-- Each server has its own count of transactions. This value is added to it, so that a log restored
-- on another server continues after its end. `fasttrack migrate` replaces the function when
-- necessary.
CREATE FUNCTION events_epoch() RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT 0::bigint';
ALTER TABLE events ALTER COLUMN xid SET DEFAULT
    events_epoch() + greatest(pg_current_xact_id()::text::bigint, pg_snapshot_xmax(pg_current_snapshot())::text::bigint - 1);
