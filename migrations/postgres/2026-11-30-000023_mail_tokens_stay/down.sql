-- Keeps the newest token per user and purpose.
DELETE FROM mail_tokens AS older USING mail_tokens AS newer
    WHERE older.user_id = newer.user_id AND older.purpose = newer.purpose
        AND (older.expires_at, older.hash) < (newer.expires_at, newer.hash);
DROP INDEX mail_tokens_expires_at;
DROP INDEX mail_tokens_user;
ALTER TABLE mail_tokens DROP CONSTRAINT mail_tokens_pkey;
ALTER TABLE mail_tokens ADD PRIMARY KEY (user_id, purpose);
ALTER TABLE mail_tokens ADD CONSTRAINT mail_tokens_hash_key UNIQUE (hash);
