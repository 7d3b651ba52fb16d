CREATE INDEX events_occurred_at ON events (occurred_at);
DELETE FROM projections WHERE name = 'floor';
