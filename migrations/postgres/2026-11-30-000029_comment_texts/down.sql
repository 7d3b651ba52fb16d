-- The texts cannot be restored, and the previous version can read events without them.
SELECT 1;
