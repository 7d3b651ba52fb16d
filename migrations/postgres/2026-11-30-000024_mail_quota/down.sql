DROP TABLE mail_quota;
