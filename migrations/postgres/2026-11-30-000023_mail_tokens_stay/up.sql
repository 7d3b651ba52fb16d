-- A user may have several mailed tokens per purpose: a new token does not revoke older ones.
ALTER TABLE mail_tokens DROP CONSTRAINT mail_tokens_pkey;
ALTER TABLE mail_tokens DROP CONSTRAINT mail_tokens_hash_key;
ALTER TABLE mail_tokens ADD PRIMARY KEY (hash);
CREATE INDEX mail_tokens_user ON mail_tokens (user_id, purpose);
CREATE INDEX mail_tokens_expires_at ON mail_tokens (expires_at);
