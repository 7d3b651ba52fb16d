DROP TABLE username_changes;
