DROP TABLE task_usage;
DROP TABLE project_usage;
DROP TABLE user_usage;
