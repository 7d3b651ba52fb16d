-- Addresses that an account had until a change was asked for. The link mailed to one takes the change back; until it
-- expires, nobody else may have an address that was verified.
CREATE TABLE email_changes (
    id           BLOB PRIMARY KEY,
    user_id      BLOB NOT NULL REFERENCES users ON DELETE CASCADE,
    email        TEXT NOT NULL,
    email_key    TEXT NOT NULL,
    was_verified INTEGER NOT NULL,
    requested_at INTEGER NOT NULL,
    expires_at   INTEGER NOT NULL,
    UNIQUE (user_id, email_key)
) STRICT;
CREATE INDEX email_changes_email ON email_changes (email_key);
CREATE INDEX email_changes_expires ON email_changes (expires_at);
