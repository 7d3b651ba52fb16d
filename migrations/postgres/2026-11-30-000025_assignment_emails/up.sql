-- Whether assignments are mailed to a person.
ALTER TABLE users ADD COLUMN assignment_emails boolean NOT NULL DEFAULT true;
