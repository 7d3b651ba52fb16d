-- Whether assignments are mailed to a person.
ALTER TABLE users ADD COLUMN assignment_emails INTEGER NOT NULL DEFAULT 1;
