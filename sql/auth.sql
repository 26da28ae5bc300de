-- What policies ask about who is asking, as Supabase Auth defines it (github.com/supabase/auth, migrations 20220224000811,
-- 20220531120530 and 20240624145325), and the table that applications refer to. Realtime and PostgREST set
-- request.jwt.claims; what supabase/postgres brings reads request.jwt.claim.sub, which they do not set, so that a
-- policy on auth.uid() would hide every row. Runs once, when Postgres initialises an empty data volume.
CREATE SCHEMA IF NOT EXISTS auth;
GRANT USAGE ON SCHEMA auth TO PUBLIC;

CREATE TABLE IF NOT EXISTS auth.users (
    id                 uuid PRIMARY KEY,
    aud                varchar(255),
    role               varchar(255),
    email              varchar(255) UNIQUE,
    raw_app_meta_data  jsonb,
    raw_user_meta_data jsonb,
    created_at         timestamptz,
    updated_at         timestamptz
);

CREATE OR REPLACE FUNCTION auth.uid() RETURNS uuid LANGUAGE sql STABLE AS $$
    SELECT coalesce(
        nullif(current_setting('request.jwt.claim.sub', true), ''),
        nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub'
    )::uuid
$$;

CREATE OR REPLACE FUNCTION auth.role() RETURNS text LANGUAGE sql STABLE AS $$
    SELECT coalesce(
        nullif(current_setting('request.jwt.claim.role', true), ''),
        nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'role'
    )
$$;

CREATE OR REPLACE FUNCTION auth.email() RETURNS text LANGUAGE sql STABLE AS $$
    SELECT coalesce(
        nullif(current_setting('request.jwt.claim.email', true), ''),
        nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'email'
    )
$$;

CREATE OR REPLACE FUNCTION auth.jwt() RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT coalesce(
        nullif(current_setting('request.jwt.claim', true), ''),
        nullif(current_setting('request.jwt.claims', true), '')
    )::jsonb
$$;

-- Supabase Auth, should it come later, replaces them as its own.
DO $owner$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'supabase_auth_admin') THEN
        ALTER FUNCTION auth.uid() OWNER TO supabase_auth_admin;
        ALTER FUNCTION auth.role() OWNER TO supabase_auth_admin;
        ALTER FUNCTION auth.email() OWNER TO supabase_auth_admin;
        ALTER FUNCTION auth.jwt() OWNER TO supabase_auth_admin;
    END IF;
END
$owner$;
