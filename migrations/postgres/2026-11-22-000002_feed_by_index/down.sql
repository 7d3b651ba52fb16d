DROP INDEX events_unassigned;
DROP INDEX events_deleted;
