-- One statement as a role with a token's claims, undone at once: how many rows it touched, or why it failed.
CREATE FUNCTION pg_temp.trial(
    role text, claims text, statement text, OUT touched bigint, OUT code text, OUT message text
) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('request.jwt.claims', claims, true), set_config('role', role, true);
    EXECUTE statement;
    GET DIAGNOSTICS touched = ROW_COUNT;
    RAISE EXCEPTION USING ERRCODE = 'TRIAL', MESSAGE = touched::text;
EXCEPTION
    WHEN SQLSTATE 'TRIAL' THEN
        touched := SQLERRM;
    WHEN OTHERS THEN
        touched := 0;
        GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT;
END
$$;
