-- The address of the last refresh; null before the first one.
ALTER TABLE sessions ADD COLUMN last_ip_address text;
