-- Addresses of an account before a requested change. The link mailed to such an address undoes the
-- change. Until it expires, a verified old address cannot be used by another account.
CREATE TABLE email_changes (
    id           uuid PRIMARY KEY,
    user_id      uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    email        text NOT NULL,
    email_key    text COLLATE "C" NOT NULL,
    was_verified boolean NOT NULL,
    requested_at timestamptz NOT NULL,
    expires_at   timestamptz NOT NULL,
    UNIQUE (user_id, email_key)
);
CREATE INDEX email_changes_email ON email_changes (email_key);
CREATE INDEX email_changes_expires ON email_changes (expires_at);
