-- Addresses of an account before a requested change. The link mailed to such an address undoes the
-- change. Until it expires, a verified old address cannot be used by another account.
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
