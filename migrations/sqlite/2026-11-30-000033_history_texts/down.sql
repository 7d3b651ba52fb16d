-- Every event carries its texts again, and each event of a task that is gone the last picture of that task.
CREATE TEMP TABLE text_references AS
SELECT e.seq, r.value AS ref, coalesce(
    (SELECT body FROM history_texts AS t
        WHERE t.object_id = coalesce(e.task_id, e.project_id) AND t.id = unhex(replace(r.value, '-', ''))),
    (SELECT description FROM tasks WHERE tasks.id = e.task_id),
    (SELECT description FROM projects WHERE e.task_id IS NULL AND projects.id = e.project_id)) AS body
FROM events AS e, json_tree(e.data) AS r
WHERE r.key IN ('text', 'fromText', 'toText') AND r.type = 'text'
    AND (e.data LIKE '%"text":%' OR e.data LIKE '%"fromText":%' OR e.data LIKE '%"toText":%');
CREATE INDEX temp.text_references_by_event ON text_references (seq, ref);

UPDATE events SET data = json_set(data, '$.changes', (
    SELECT json_group_array(json_object(
        'field', json_extract(c.value, '$.field'),
        'from', coalesce(json_extract(c.value, '$.from'), (SELECT body FROM text_references AS r
            WHERE r.seq = events.seq AND r.ref = json_extract(c.value, '$.fromText'))),
        'to', coalesce(json_extract(c.value, '$.to'), (SELECT body FROM text_references AS r
            WHERE r.seq = events.seq AND r.ref = json_extract(c.value, '$.toText')))))
    FROM json_each(events.data, '$.changes') AS c))
WHERE json_type(data, '$.changes') = 'array';
UPDATE events SET data = json_remove(json_set(data,
    CASE WHEN json_type(data, '$.task') = 'object' THEN '$.task.description'
         ELSE '$.project.description' END,
    (SELECT body FROM text_references AS r WHERE r.seq = events.seq AND r.ref = json_extract(data, '$.text'))), '$.text')
WHERE json_type(data, '$.text') = 'text';
UPDATE events SET data = json_set(data, '$.task', json((
    SELECT json_extract(d.data, '$.task') FROM events AS d WHERE d.task_id = events.task_id AND d.kind = 3)))
WHERE task_id IS NOT NULL AND kind <> 3 AND json_type(data, '$.task') IS NULL
    AND NOT EXISTS (SELECT 1 FROM tasks WHERE tasks.id = events.task_id)
    AND EXISTS (SELECT 1 FROM events AS d WHERE d.task_id = events.task_id AND d.kind = 3);

DROP TABLE temp.text_references;
DROP TABLE history_texts;
