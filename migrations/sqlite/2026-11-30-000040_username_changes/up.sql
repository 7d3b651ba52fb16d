-- Former usernames of an account. Until a row expires, its username cannot be used by another account.
CREATE TABLE username_changes (
    id           BLOB PRIMARY KEY,
    user_id      BLOB NOT NULL REFERENCES users ON DELETE CASCADE,
    username_key TEXT NOT NULL,
    changed_at   INTEGER NOT NULL,
    expires_at   INTEGER NOT NULL,
    UNIQUE (user_id, username_key)
) STRICT;
CREATE INDEX username_changes_username ON username_changes (username_key);
CREATE INDEX username_changes_expires ON username_changes (expires_at);
