-- Mail of the last hour, to limit mail per recipient and per sender. `recipient` is the SHA-256
-- hash of the address. No foreign keys: deleting an account does not reset its quota.
CREATE TABLE mail_quota (
    id         uuid PRIMARY KEY,
    recipient  bytea NOT NULL,
    kind       smallint NOT NULL,
    sender_id  uuid,
    counted_at timestamptz NOT NULL
);
CREATE INDEX mail_quota_recipient ON mail_quota (recipient, counted_at);
CREATE INDEX mail_quota_sender ON mail_quota (sender_id, counted_at);
CREATE INDEX mail_quota_counted_at ON mail_quota (counted_at);
