-- Runs before what pg_restore writes, in the same transaction: makes room for it.

-- Dropping a table takes it out of its publications, which are the program's and not in the backup.
CREATE TEMP TABLE published ON COMMIT DROP AS
SELECT p.pubname AS publication, n.name AS schema, c.relname AS table,
       (
           SELECT ' (' || string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) || ')'
           FROM pg_attribute a
           WHERE a.attrelid = r.prrelid AND a.attnum = ANY (r.prattrs)
       ) AS columns,
       ' WHERE (' || pg_get_expr(r.prqual, r.prrelid) || ')' AS filter
FROM pg_publication_rel r
JOIN pg_publication p ON p.oid = r.prpubid
JOIN pg_class c ON c.oid = r.prrelid
JOIN pg_temp.application_schema n ON n.oid = c.relnamespace
UNION ALL
SELECT p.pubname, n.name, NULL, NULL, NULL
FROM pg_publication_namespace r
JOIN pg_publication p ON p.oid = r.pnpubid
JOIN pg_temp.application_schema n ON n.oid = r.pnnspid;

SELECT lo_unlink(oid) FROM pg_largeobject_metadata;

DO $drop$
DECLARE
    one record;
BEGIN
    FOR one IN SELECT name FROM pg_temp.application_schema LOOP
        EXECUTE format('DROP SCHEMA %I CASCADE', one.name);
    END LOOP;
    -- Policies of private channels are the application's, on a table of Realtime's.
    FOR one IN SELECT schemaname, tablename, policyname FROM pg_policies WHERE schemaname = 'realtime' LOOP
        EXECUTE format('DROP POLICY %I ON %I.%I', one.policyname, one.schemaname, one.tablename);
    END LOOP;
    FOR one IN
        SELECT fdwname FROM pg_foreign_data_wrapper w
        WHERE NOT EXISTS (
            SELECT FROM pg_depend d
            WHERE d.classid = 'pg_foreign_data_wrapper'::regclass AND d.objid = w.oid AND d.deptype = 'e'
        )
    LOOP
        EXECUTE format('DROP FOREIGN DATA WRAPPER %I CASCADE', one.fdwname);
    END LOOP;
    FOR one IN
        SELECT srvname FROM pg_foreign_server s
        WHERE NOT EXISTS (
            SELECT FROM pg_depend d
            WHERE d.classid = 'pg_foreign_server'::regclass AND d.objid = s.oid AND d.deptype = 'e'
        )
    LOOP
        EXECUTE format('DROP SERVER %I CASCADE', one.srvname);
    END LOOP;
END
$drop$;

-- As initdb makes it since Postgres 15, which is what pg_dump takes for granted and does not write.
CREATE SCHEMA public AUTHORIZATION pg_database_owner;
GRANT USAGE ON SCHEMA public TO PUBLIC;
COMMENT ON SCHEMA public IS 'standard public schema';
