-- A user may have several mailed tokens per purpose: a new token does not revoke older ones.
ALTER TABLE mail_tokens RENAME TO mail_tokens_before;
CREATE TABLE mail_tokens (
    user_id    BLOB NOT NULL REFERENCES users ON DELETE CASCADE,
    purpose    INTEGER NOT NULL,
    hash       BLOB PRIMARY KEY,
    email      TEXT NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO mail_tokens (user_id, purpose, hash, email, expires_at)
    SELECT user_id, purpose, hash, email, expires_at FROM mail_tokens_before;
DROP TABLE mail_tokens_before;
CREATE INDEX mail_tokens_user ON mail_tokens (user_id, purpose);
CREATE INDEX mail_tokens_expires_at ON mail_tokens (expires_at);
