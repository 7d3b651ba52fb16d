-- The texts are gone, and the version before reads such events too.
SELECT 1;
