-- Runs once, by the image's entrypoint (psql), when Postgres initialises an empty data volume.

-- Realtime decodes changes with wal2json. supabase/postgres says so already; a plain postgres image does not.
ALTER SYSTEM SET wal_level = 'logical';
ALTER SYSTEM SET max_replication_slots = '10';
ALTER SYSTEM SET max_wal_senders = '10';

-- Since 15.19 Postgres loads no output plugin that this setting does not name; before, it does not know the setting.
SELECT 'ALTER SYSTEM SET output_plugin_libraries = pgoutput, test_decoding, wal2json'
WHERE EXISTS (SELECT FROM pg_settings WHERE name = 'output_plugin_libraries') \gexec

-- supabase/postgres makes this publication, empty. Pulumi makes it again, with the declared tables, and owns it.
SELECT 'DROP PUBLICATION supabase_realtime'
WHERE EXISTS (SELECT FROM pg_publication WHERE pubname = 'supabase_realtime' AND NOT puballtables)
  AND NOT EXISTS (SELECT FROM pg_publication_tables WHERE pubname = 'supabase_realtime') \gexec
