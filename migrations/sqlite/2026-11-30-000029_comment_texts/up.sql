-- The text of a comment is in the row of the comment alone. It goes with the row, and an edit replaces it.
UPDATE events SET data = json_remove(data, '$.comment')
    WHERE kind IN (7, 8) AND json_extract(data, '$.comment') IS NOT NULL;
UPDATE events SET data = json_set(data, '$.comment.body', '')
    WHERE kind = 9 AND json_extract(data, '$.comment.body') <> '';
