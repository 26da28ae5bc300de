-- The schemas that a backup holds whole and a restore replaces whole: every schema of the database but those of
-- Postgres, of Realtime (its own migrations make them), of the image and of extensions (CREATE EXTENSION makes them).
CREATE TEMP VIEW application_schema AS
SELECT n.oid, n.nspname AS name
FROM pg_namespace n
WHERE n.nspname !~ '^pg_'
  AND n.nspname NOT IN (
      'information_schema', '_realtime', 'realtime', 'extensions', 'graphql', 'graphql_public', 'pgbouncer', 'vault'
  )
  AND NOT EXISTS (
      SELECT FROM pg_depend d
      WHERE d.classid = 'pg_namespace'::regclass AND d.objid = n.oid AND d.deptype = 'e'
  )
  -- A schema that was made to install an extension in, and holds nothing else.
  AND (
      n.nspname = 'public'
      OR NOT EXISTS (SELECT FROM pg_extension e WHERE e.extnamespace = n.oid)
      OR EXISTS (
          SELECT FROM pg_class c
          WHERE c.relnamespace = n.oid AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
            AND NOT EXISTS (
                SELECT FROM pg_depend d
                WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
            )
      )
      OR EXISTS (
          SELECT FROM pg_proc p
          WHERE p.pronamespace = n.oid
            AND NOT EXISTS (
                SELECT FROM pg_depend d
                WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
            )
      )
  );
