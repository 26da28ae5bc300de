-- The sample application: wells whose state people watch live.
CREATE TABLE public.wells (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text NOT NULL,
    depth_m    numeric(8, 2),
    active     boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now()
);

COMMENT ON TABLE public.wells IS 'Published by Supabase Realtime; who may read and write is declared in the stack config.';
