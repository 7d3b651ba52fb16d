-- Where a session was last refreshed from; null until it is.
ALTER TABLE sessions ADD COLUMN last_ip_address text;
