ALTER TABLE mail_tokens RENAME TO mail_tokens_after;
CREATE TABLE mail_tokens (
    user_id    BLOB NOT NULL REFERENCES users ON DELETE CASCADE,
    purpose    INTEGER NOT NULL,
    hash       BLOB NOT NULL UNIQUE,
    email      TEXT NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (user_id, purpose)
) STRICT;
-- Keeps the newest token per user and purpose.
INSERT OR REPLACE INTO mail_tokens (user_id, purpose, hash, email, expires_at)
    SELECT user_id, purpose, hash, email, expires_at FROM mail_tokens_after ORDER BY expires_at, hash;
DROP TABLE mail_tokens_after;
