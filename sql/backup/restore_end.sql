-- Runs after what pg_restore writes, in the same transaction: the tables go back into their publications.
DO $publish$
DECLARE
    one record;
BEGIN
    FOR one IN SELECT * FROM pg_temp.published LOOP
        IF one.table IS NULL THEN
            CONTINUE WHEN to_regnamespace(quote_ident(one.schema)) IS NULL;
            EXECUTE format('ALTER PUBLICATION %I ADD TABLES IN SCHEMA %I', one.publication, one.schema);
        ELSE
            -- A table younger than the backup is gone, as it was then.
            CONTINUE WHEN to_regclass(format('%I.%I', one.schema, one.table)) IS NULL;
            EXECUTE format(
                'ALTER PUBLICATION %I ADD TABLE ONLY %I.%I%s%s',
                one.publication, one.schema, one.table, one.columns, one.filter
            );
        END IF;
    END LOOP;
END
$publish$;
