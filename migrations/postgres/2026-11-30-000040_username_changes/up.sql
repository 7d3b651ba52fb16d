-- Former usernames of an account. Until a row expires, its username cannot be used by another account.
CREATE TABLE username_changes (
    id           uuid PRIMARY KEY,
    user_id      uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    username_key text COLLATE "C" NOT NULL,
    changed_at   timestamptz NOT NULL,
    expires_at   timestamptz NOT NULL,
    UNIQUE (user_id, username_key)
);
CREATE INDEX username_changes_username ON username_changes (username_key);
CREATE INDEX username_changes_expires ON username_changes (expires_at);
