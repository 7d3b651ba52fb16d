-- Mail of the last hour, to limit mail per recipient and per sender. `recipient` is the SHA-256
-- hash of the address. No foreign keys: deleting an account does not reset its quota.
CREATE TABLE mail_quota (
    id         BLOB PRIMARY KEY,
    recipient  BLOB NOT NULL,
    kind       INTEGER NOT NULL,
    sender_id  BLOB,
    counted_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX mail_quota_recipient ON mail_quota (recipient, counted_at);
CREATE INDEX mail_quota_sender ON mail_quota (sender_id, counted_at);
CREATE INDEX mail_quota_counted_at ON mail_quota (counted_at);
