-- The text of a comment is stored only in its row, so that deletion and edits leave no copy.
UPDATE events SET data = json_remove(data, '$.comment')
    WHERE kind IN (7, 8) AND json_extract(data, '$.comment') IS NOT NULL;
UPDATE events SET data = json_set(data, '$.comment.body', '')
    WHERE kind = 9 AND json_extract(data, '$.comment.body') <> '';
