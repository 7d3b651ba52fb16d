ALTER TABLE users DROP COLUMN assignment_emails;
