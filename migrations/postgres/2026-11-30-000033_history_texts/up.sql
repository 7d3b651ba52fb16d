-- Long texts that events refer to: of each text that an object once had one copy, by the SHA-256 of the text. What the
-- object has now is in its own row. `event_id` is the newest event that refers to the text.
-- No foreign keys: history outlives what it tells of.
CREATE TABLE history_texts (
    object_id uuid NOT NULL,
    id        uuid NOT NULL,
    owner_id  uuid NOT NULL,
    event_id  uuid NOT NULL,
    body      text NOT NULL,
    PRIMARY KEY (object_id, id)
);
CREATE INDEX history_texts_owner ON history_texts (owner_id);
