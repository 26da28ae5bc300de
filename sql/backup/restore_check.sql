-- Refuses a database with rows of the application, unless backup.replace says so. The locks hold until the
-- transaction ends, so that no row comes in between the look and the replacing.
DO $check$
DECLARE
    replaced boolean := current_setting('backup.replace')::boolean;
    one record;
    filled boolean;
    found text[] := '{}';
BEGIN
    FOR one IN
        SELECT n.name AS schema, c.relname AS name
        FROM pg_class c JOIN pg_temp.application_schema n ON n.oid = c.relnamespace
        WHERE c.relkind = 'r'
          AND NOT EXISTS (
              SELECT FROM pg_depend d
              WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
          )
          -- What tools write down about their own migrations.
          AND c.relname NOT IN ('_yoyo_migration', '_yoyo_log', '_yoyo_version', 'yoyo_lock')
          AND NOT (n.name IN ('auth', 'storage') AND c.relname LIKE '%migrations')
        ORDER BY 1, 2
    LOOP
        EXECUTE format('LOCK TABLE ONLY %I.%I IN ACCESS EXCLUSIVE MODE', one.schema, one.name);
        CONTINUE WHEN replaced;
        EXECUTE format('SELECT EXISTS (SELECT FROM ONLY %I.%I)', one.schema, one.name) INTO filled;
        IF filled THEN
            found := found || format('%I.%I', one.schema, one.name);
        END IF;
    END LOOP;
    IF cardinality(found) > 0 THEN
        RAISE EXCEPTION 'it holds rows already, in %', array_to_string(found, ', ') USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
END
$check$;
