-- How much accounts, projects and tasks hold, each a counter that is changed with what it counts.
-- `text_bytes`: of an account the descriptions and comments in its projects, with the former texts that history keeps;
-- of a task its comments.
CREATE TABLE user_usage (
    user_id    BLOB PRIMARY KEY,
    projects   INTEGER NOT NULL,
    text_bytes INTEGER NOT NULL
) STRICT;
CREATE TABLE project_usage (
    project_id BLOB PRIMARY KEY REFERENCES projects ON DELETE CASCADE,
    tasks      INTEGER NOT NULL
) STRICT;
CREATE TABLE task_usage (
    task_id    BLOB PRIMARY KEY REFERENCES tasks ON DELETE CASCADE,
    comments   INTEGER NOT NULL,
    text_bytes INTEGER NOT NULL
) STRICT;

INSERT INTO task_usage (task_id, comments, text_bytes)
SELECT task_id, count(*), sum(octet_length(body)) FROM comments GROUP BY task_id;
INSERT INTO project_usage (project_id, tasks) SELECT project_id, count(*) FROM tasks GROUP BY project_id;
INSERT INTO user_usage (user_id, projects, text_bytes)
SELECT owner_id, sum(projects), sum(text_bytes) FROM (
    SELECT owner_id, count(*) AS projects, coalesce(sum(octet_length(description)), 0) AS text_bytes
        FROM projects GROUP BY owner_id
    UNION ALL SELECT owner_id, 0, sum(octet_length(description)) FROM tasks WHERE description IS NOT NULL
        GROUP BY owner_id
    UNION ALL SELECT tasks.owner_id, 0, sum(task_usage.text_bytes)
        FROM task_usage JOIN tasks ON tasks.id = task_usage.task_id GROUP BY tasks.owner_id
    UNION ALL SELECT owner_id, 0, sum(octet_length(body)) FROM history_texts GROUP BY owner_id
) AS parts GROUP BY owner_id;
