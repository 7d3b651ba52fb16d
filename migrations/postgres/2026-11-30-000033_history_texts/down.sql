-- Every event carries its texts again, and each event of a task that is gone the last picture of that task.
CREATE FUNCTION pg_temp.referred(e events, ref text) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN ref IS NOT NULL THEN coalesce(
        (SELECT body FROM history_texts AS t
            WHERE t.object_id = coalesce(e.task_id, e.project_id) AND t.id = ref::uuid),
        (SELECT description FROM tasks WHERE tasks.id = e.task_id),
        (SELECT description FROM projects WHERE e.task_id IS NULL AND projects.id = e.project_id)) END
$$;

UPDATE events SET data = jsonb_set(data::jsonb, '{changes}', (
    SELECT jsonb_agg(jsonb_build_object(
        'field', c.value->>'field',
        'from', coalesce(c.value->>'from', pg_temp.referred(events, c.value->>'fromText')),
        'to', coalesce(c.value->>'to', pg_temp.referred(events, c.value->>'toText'))) ORDER BY c.ordinality)
    FROM jsonb_array_elements(data::jsonb->'changes') WITH ORDINALITY AS c))::text
WHERE jsonb_array_length(data::jsonb->'changes') > 0;
UPDATE events SET data = (jsonb_set(data::jsonb,
    CASE WHEN data::jsonb ? 'task' THEN '{task,description}'::text[]
         ELSE '{project,description}'::text[] END,
    to_jsonb(pg_temp.referred(events, data::jsonb->>'text'))) - 'text')::text
WHERE data::jsonb ? 'text';
UPDATE events SET data = jsonb_set(events.data::jsonb, '{task}', d.data::jsonb->'task')::text
FROM events AS d
WHERE d.task_id = events.task_id AND d.kind = 3 AND d.data::jsonb ? 'task'
    AND events.kind <> 3 AND NOT events.data::jsonb ? 'task'
    AND NOT EXISTS (SELECT 1 FROM tasks WHERE tasks.id = events.task_id);

DROP FUNCTION pg_temp.referred(events, text);
DROP TABLE history_texts;
