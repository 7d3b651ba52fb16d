ALTER TABLE sessions DROP COLUMN last_ip_address;
