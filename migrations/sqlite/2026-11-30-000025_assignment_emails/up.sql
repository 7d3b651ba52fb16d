-- Whether the user receives e-mail about assignments.
ALTER TABLE users ADD COLUMN assignment_emails INTEGER NOT NULL DEFAULT 1;
