-- The text of a comment is stored only in its row, so that deletion and edits leave no copy.
UPDATE events SET data = (data::jsonb - 'comment')::text
    WHERE kind IN (7, 8) AND data::jsonb -> 'comment' IS NOT NULL;
UPDATE events SET data = jsonb_set(data::jsonb, '{comment,body}', '""')::text
    WHERE kind = 9 AND data::jsonb #>> '{comment,body}' <> '';
