"""Every fault that the doctor can name: its symptom, its cause and its cure. The data behind docs/failures.md.

``{name}`` in a cure stands for what the check that found the fault fills in: a table, a role, a setting.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict, Field

POSTGRES = "https://www.postgresql.org/docs/15/"
REALTIME = "https://github.com/supabase/realtime"
SUPABASE = "https://supabase.com/docs/guides/"
KONG = "https://docs.konghq.com/hub/kong-inc/"
KONG_ROUTES = "https://docs.konghq.com/gateway/2.8.x/admin-api/"
DOCKER = "https://docs.docker.com/"


class Cause(BaseModel):
    """A fault, once: what somebody sees, what is behind it, what puts it right, and the page that explains it."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    area: str
    symptom: str
    cause: str
    cure: str
    page: str


def _area(area: str, *rows: tuple[str, str, str, str, str]) -> Iterator[Cause]:
    for identifier, symptom, cause, cure, page in rows:
        yield Cause(id=identifier, area=area, symptom=symptom, cause=cause, cure=cure, page=page)


UP = "`make up`"
SHOW_LOG = "`docker logs {container}` has the rest"

_CAUSES = (
    *_area(
        "Containers and network",
        (
            "network-missing",
            "containers run and cannot find each other",
            "the stack's Docker network is gone",
            f"{UP} makes it again, with the containers in it",
            DOCKER + "engine/network/",
        ),
        (
            "container-missing",
            "connection refused",
            "the container does not exist",
            f"{UP} makes it again",
            DOCKER + "reference/cli/docker/container/ls/",
        ),
        (
            "container-stopped",
            "connection refused, 502 or 503",
            "somebody stopped the container: it ended with exit code 0, 137 or 143, and no error is in its log",
            "`docker start {container}`, or " + UP,
            DOCKER + "reference/cli/docker/container/start/",
        ),
        (
            "container-paused",
            "connections are taken and never answered",
            "the container is paused",
            "`docker unpause {container}`",
            DOCKER + "reference/cli/docker/container/pause/",
        ),
        (
            "container-out-of-memory",
            "the container restarts, exit code 137",
            "the kernel killed it at its memory limit",
            "raise {setting} (`pulumi config set {setting} <MiB>`), then `make up`; Realtime needs 170 MiB at least",
            DOCKER + "engine/containers/resource_constraints/",
        ),
        (
            "container-cannot-start",
            "the container stays in state created",
            "the Docker engine cannot start it, for instance because its port is taken",
            "end what holds the port (`ss -ltnp`), or choose another with `pulumi config set {setting} <port>`; "
            "then `make up`",
            DOCKER + "reference/cli/docker/container/inspect/",
        ),
        (
            "container-exits",
            "the container restarts for ever",
            "its process ends by itself, with an error that the doctor does not know",
            SHOW_LOG,
            DOCKER + "engine/containers/start-containers-automatically/",
        ),
        (
            "container-unhealthy",
            "the container runs and its health check fails",
            "the server inside hangs or cannot do its work",
            SHOW_LOG + "; `docker restart {container}` if it hangs",
            DOCKER + "reference/dockerfile/#healthcheck",
        ),
        (
            "container-starting",
            "connection refused, 502, for some seconds",
            "the container was started a moment ago and is not ready yet",
            "wait a few seconds and look again",
            DOCKER + "reference/dockerfile/#healthcheck",
        ),
        (
            "container-off-network",
            "503 `name resolution failed`, or Realtime does not find Postgres",
            "the container runs outside of the stack's network",
            f"{UP} makes it again inside",
            DOCKER + "engine/network/",
        ),
        (
            "image-differs",
            "the server behaves like another version",
            "the container runs another image than the settings declare",
            f"{UP}, or set {{setting}} to the image that is meant to run",
            DOCKER + "reference/cli/docker/container/inspect/",
        ),
    ),
    *_area(
        "Postgres server",
        (
            "postgres-unreachable",
            "connection refused, or no answer",
            "nothing listens at the address of the database",
            "start the server; check host and port ({setting})",
            POSTGRES + "client-authentication-problems.html",
        ),
        (
            "postgres-starting",
            "`the database system is starting up`",
            "Postgres starts, stops or recovers",
            "wait; if it lasts, `docker logs {container}` says what it recovers from",
            POSTGRES + "server-start.html",
        ),
        (
            "postgres-password-refused",
            "`password authentication failed`",
            "the password is not that of the server: a data volume keeps the password that it was made with",
            "set {setting} back to the old one, or change both: `ALTER ROLE {role} PASSWORD …`",
            POSTGRES + "auth-password.html",
        ),
        (
            "postgres-database-missing",
            "`database … does not exist`",
            "the database of that name is gone, or the name is wrong",
            "correct postgres.database (or the DSN), or `CREATE DATABASE {database}` and `make up`",
            POSTGRES + "sql-createdatabase.html",
        ),
        (
            "connections-exhausted",
            "`too many clients already`, `remaining connection slots are reserved`",
            "all connections of the server are in use",
            "end idle ones (`SELECT pid, usename, application_name, state FROM pg_stat_activity`), pool the "
            "application's, or raise max_connections and restart Postgres",
            POSTGRES + "runtime-config-connection.html#GUC-MAX-CONNECTIONS",
        ),
        (
            "connections-scarce",
            "`too many clients already` now and then",
            "few connections of the server are left; Realtime needs about a dozen for a tenant",
            "pool the application's connections, or raise max_connections and restart Postgres",
            POSTGRES + "runtime-config-connection.html#GUC-MAX-CONNECTIONS",
        ),
        (
            "postgres-login-refused",
            "the login fails",
            "the server refuses the login for another reason than the password",
            "the message says which: pg_hba.conf, NOLOGIN, a connection limit or SSL",
            POSTGRES + "client-authentication-problems.html",
        ),
        (
            "postgres-tls-refused",
            "`certificate verify failed`, `does not match host name`, `server does not support SSL`",
            "the server answers, and this machine and it do not agree on TLS: on whether it is used, on who vouches "
            "for the server's certificate, or on the server's name",
            "{advice}",
            POSTGRES + "libpq-ssl.html",
        ),
        (
            "postgres-version-unsupported",
            "functions of Realtime's migrations cannot be made",
            "the server is older than Postgres 14",
            "move to Postgres 15",
            SUPABASE + "self-hosting/docker",
        ),
        (
            "user-not-superuser",
            '`permission denied to set parameter "log_min_messages"`, CHANNEL_ERROR',
            "the user of Realtime is no superuser, and its functions set parameters that only one may set",
            "as another superuser: `ALTER ROLE {role} SUPERUSER`",
            POSTGRES + "role-attributes.html",
        ),
        (
            "wal-level-not-logical",
            "`Subscribed to PostgreSQL`, and silence; log `PoolingReplicationPreparationError`",
            "wal_level is not logical, so that nothing can be decoded",
            "`ALTER SYSTEM SET wal_level = logical`, then restart Postgres",
            POSTGRES + "runtime-config-wal.html#GUC-WAL-LEVEL",
        ),
        (
            "replication-slots-exhausted",
            "`Subscribed to PostgreSQL`, and silence; log `all replication slots are in use`",
            "every replication slot is taken, and none is Realtime's",
            "drop what nobody uses (`SELECT pg_drop_replication_slot('{slot}')`), or raise max_replication_slots and "
            "restart Postgres",
            POSTGRES + "runtime-config-replication.html#GUC-MAX-REPLICATION-SLOTS",
        ),
        (
            "wal-senders-exhausted",
            "broadcast from the database fails; log `number of requested standby connections exceeds`",
            "every WAL sender is taken. Changes do not need one; broadcast from the database does (Realtime 2.34 on)",
            "raise max_wal_senders and restart Postgres",
            POSTGRES + "runtime-config-replication.html#GUC-MAX-WAL-SENDERS",
        ),
        (
            "wal2json-missing",
            "`Subscribed to PostgreSQL`, and silence; log `PoolingReplicationPreparationError`",
            "the server has no output plugin wal2json, or does not allow it",
            "install it (package postgresql-15-wal2json) or use the image supabase/postgres; since Postgres 15.19 also "
            "name it in output_plugin_libraries",
            "https://github.com/eulerto/wal2json",
        ),
        (
            "slot-blocked-by-transaction",
            "`Subscribed to PostgreSQL`, and silence",
            "a transaction that wrote has been open for long, and no logical slot can be made before it ends",
            "end it: `SELECT pg_terminate_backend({pid})`",
            POSTGRES + "logicaldecoding-explanation.html",
        ),
        (
            "wal-held-back",
            "the disk of Postgres fills up",
            "a replication slot that nobody reads keeps the WAL",
            "`SELECT pg_drop_replication_slot('{slot}')`, and set max_slot_wal_keep_size as a limit",
            POSTGRES + "runtime-config-replication.html#GUC-MAX-SLOT-WAL-KEEP-SIZE",
        ),
    ),
    *_area(
        "Database objects",
        (
            "role-missing",
            'CHANNEL_ERROR; log `role "anon" does not exist`',
            "a database role that Realtime or a JWT names is missing",
            f"{UP}, or `CREATE ROLE {{role}} NOLOGIN NOINHERIT`",
            POSTGRES + "sql-createrole.html",
        ),
        (
            "api-role-bypasses-rls",
            "everybody sees every row",
            "role anon or authenticated is a superuser or has BYPASSRLS",
            "`ALTER ROLE {role} NOSUPERUSER NOBYPASSRLS`",
            POSTGRES + "ddl-rowsecurity.html",
        ),
        (
            "service-role-without-bypassrls",
            "the service key sees no rows",
            "service_role has no BYPASSRLS, and no policy is written for it",
            "`ALTER ROLE service_role BYPASSRLS`",
            POSTGRES + "ddl-rowsecurity.html",
        ),
        (
            "schema-of-tenants-missing",
            "Realtime restarts for ever: `ERROR 3F000 … no schema has been selected to create in`",
            "schema _realtime, which nothing in Realtime creates, is missing",
            f"{UP}, or `CREATE SCHEMA _realtime; GRANT ALL ON SCHEMA _realtime TO supabase_admin`",
            SUPABASE + "self-hosting/docker",
        ),
        (
            "schema-realtime-missing",
            'healthy, and every join is CHANNEL_ERROR; log `schema "realtime" does not exist`',
            "schema realtime, where the tenant's migrations go, is missing",
            f"{UP}, or `CREATE SCHEMA realtime`, then restart Realtime, which fills it",
            REALTIME,
        ),
        (
            "tenant-migrations-missing",
            "CHANNEL_ERROR at the first join",
            "schema realtime is there, and Realtime's migrations have not run in it",
            "restart Realtime and open the tenant (`make up` does both)",
            REALTIME,
        ),
        (
            "tenant-migrations-damaged",
            "CHANNEL_ERROR, or silence; log `function realtime.… does not exist`",
            "an object of Realtime's migrations was dropped, and realtime.schema_migrations says that it is there",
            "`DROP SCHEMA realtime CASCADE; CREATE SCHEMA realtime`, restart Realtime, then `make up`",
            REALTIME,
        ),
        (
            "database-newer-than-realtime",
            "subscribed, then the system error `42P10 … ON CONFLICT`",
            "a newer Realtime migrated this database, and there is no way back",
            "set realtime.image to a version at least as new, or restore the backup made before the upgrade",
            REALTIME + "/releases",
        ),
    ),
    *_area(
        "Publication and tables",
        (
            "publication-missing",
            "subscribed, then the system error `Unable to subscribe to changes with given parameters`",
            "the publication supabase_realtime does not exist",
            f"{UP}, or `CREATE PUBLICATION supabase_realtime FOR TABLE {{table}}`",
            POSTGRES + "sql-createpublication.html",
        ),
        (
            "publication-empty",
            "subscribed, and silence, or the system error `Unable to subscribe to changes …`",
            "the publication has no table",
            "`ALTER PUBLICATION supabase_realtime ADD TABLE <table>`",
            POSTGRES + "sql-alterpublication.html",
        ),
        (
            "table-missing",
            "the system error `Unable to subscribe to changes …`",
            "the declared table does not exist",
            "create {table} in a file of `migrations`, then `make up`",
            POSTGRES + "ddl-basics.html",
        ),
        (
            "table-not-published",
            "subscribed, and silence, or the system error `Unable to subscribe to changes …`",
            "the table is not in the publication",
            f"{UP}, or `ALTER PUBLICATION supabase_realtime ADD TABLE {{table}}`",
            POSTGRES + "sql-alterpublication.html",
        ),
        (
            "events-not-published",
            "some kinds of event never come",
            "the publication leaves them out",
            f"{UP}, or `ALTER PUBLICATION supabase_realtime SET (publish = '{{events}}')`",
            POSTGRES + "sql-createpublication.html",
        ),
        (
            "table-without-primary-key",
            "events with an empty record and `Error 400: Bad Request, no primary key`",
            "the table has no primary key",
            "`ALTER TABLE {table} ADD PRIMARY KEY (…)`",
            POSTGRES + "ddl-constraints.html",
        ),
        (
            "replica-identity-nothing",
            "UPDATE and DELETE fail: `cannot update table … because it does not have a replica identity`",
            "the table's replica identity is nothing, or default without a primary key",
            f"{UP}, or `ALTER TABLE {{table}} REPLICA IDENTITY DEFAULT`",
            POSTGRES + "sql-altertable.html#SQL-ALTERTABLE-REPLICA-IDENTITY",
        ),
        (
            "schema-usage-missing",
            "`permission denied for schema`; events with an empty record and `Error 401: Unauthorized`",
            "the role may not use the schema of the table",
            f"{UP}, or `GRANT USAGE ON SCHEMA {{schema}} TO {{role}}`",
            POSTGRES + "ddl-schemas.html#DDL-SCHEMAS-PRIV",
        ),
        (
            "select-grant-missing",
            "events with an empty record and `Error 401: Unauthorized`",
            "the role has a policy and not the privilege SELECT on every column of the primary key",
            f"{UP}, or `GRANT SELECT ON {{table}} TO {{role}}` (of some columns: the primary key among them)",
            POSTGRES + "sql-grant.html",
        ),
        (
            "insert-grant-missing",
            "writes fail: `permission denied for table`",
            "the role has a policy and not the privilege INSERT",
            f"{UP}, or `GRANT INSERT ON {{table}} TO {{role}}`",
            POSTGRES + "sql-grant.html",
        ),
        (
            "sequence-usage-missing",
            "writes fail: `permission denied for sequence`",
            "the role may insert and not use the sequence of a serial column",
            f"{UP}, or `GRANT USAGE ON SEQUENCE {{sequence}} TO {{role}}`",
            POSTGRES + "sql-grant.html",
        ),
        (
            "truncate-granted",
            "nothing, until somebody empties the table",
            "a role of people holds TRUNCATE, which row level security does not stop (Supabase's default privileges)",
            f"{UP}, or `REVOKE TRUNCATE ON {{table}} FROM {{role}}`",
            POSTGRES + "ddl-rowsecurity.html",
        ),
        (
            "row-security-off",
            "everybody with the privilege sees and changes every row",
            "row level security of the table is off, so that its policies do nothing",
            f"{UP}, or `ALTER TABLE {{table}} ENABLE ROW LEVEL SECURITY`",
            POSTGRES + "ddl-rowsecurity.html",
        ),
        (
            "select-policy-missing",
            "subscribed, and silence",
            "row level security is on, and no permissive SELECT policy names the role",
            f"{UP}, or `CREATE POLICY … ON {{table}} FOR SELECT TO {{role}} USING (…)`",
            POSTGRES + "sql-createpolicy.html",
        ),
        (
            "select-policy-false",
            "subscribed, and silence",
            "the SELECT policies of the role let no row through: a restrictive one is false, or all permissive ones",
            f"{UP}, or `ALTER POLICY {{policy}} ON {{table}} USING (…)`",
            POSTGRES + "sql-createpolicy.html",
        ),
        (
            "insert-policy-missing",
            "writes fail: `new row violates row-level security policy`",
            "row level security is on, and no permissive INSERT policy lets the role write, or a restrictive one "
            "forbids it",
            f"{UP}, or `CREATE POLICY … ON {{table}} FOR INSERT TO {{role}} WITH CHECK (…)`",
            POSTGRES + "sql-createpolicy.html",
        ),
    ),
    *_area(
        "Realtime server",
        (
            "rlimit-nofile-missing",
            "Realtime restarts for ever: `RLIMIT_NOFILE: unbound variable`",
            "the environment variable RLIMIT_NOFILE is missing",
            f"set `RLIMIT_NOFILE=10000`; here: {UP}",
            REALTIME + "/blob/v2.32.12/run.sh",
        ),
        (
            "rlimit-nofile-too-high",
            "Realtime restarts for ever: `ulimit: open files: cannot modify limit`",
            "RLIMIT_NOFILE is above the container's hard limit",
            "lower realtime.rlimit_nofile, or raise the container's ulimit nofile",
            REALTIME + "/blob/v2.32.12/run.sh",
        ),
        (
            "secret-key-base-missing",
            "Realtime restarts for ever: `environment variable SECRET_KEY_BASE is missing`",
            "the environment variable SECRET_KEY_BASE is missing",
            f"set it, 64 bytes or more (`openssl rand -base64 48`); here: {UP}",
            REALTIME + "/blob/v2.32.12/config/runtime.exs",
        ),
        (
            "metrics-jwt-secret-missing",
            "Realtime restarts for ever: `METRICS_JWT_SECRET` is missing",
            "newer versions (2.78.5 on) refuse to start without METRICS_JWT_SECRET",
            f"set it; here: {UP}",
            REALTIME + "/blob/main/ENVS.md",
        ),
        (
            "app-name-missing",
            "Realtime restarts for ever: `APP_NAME not available`",
            "the environment variable APP_NAME is missing",
            f"set `APP_NAME=realtime`; here: {UP}",
            REALTIME + "/blob/v2.32.12/config/runtime.exs",
        ),
        (
            "db-enc-key-wrong-length",
            "Realtime restarts for ever at its seed with `Bad key`, or every websocket gets 500",
            "DB_ENC_KEY is not exactly 16 bytes long",
            f"set it to 16 bytes, then write the tenant again; here: {UP}",
            REALTIME + "/blob/main/ENVS.md",
        ),
        (
            "erlang-wants-ipv6",
            "Realtime restarts for ever: `eaddrnotavail`",
            "the image's default ERL_AFLAGS wants IPv6, which the container has not got",
            f"set `ERL_AFLAGS=-proto_dist inet_tcp`; here: {UP}",
            SUPABASE + "self-hosting/docker",
        ),
        (
            "realtime-database-password-wrong",
            "Realtime restarts for ever: `password authentication failed`",
            "DB_PASSWORD of the container is not the password of the server",
            f"{UP}, which makes the container again with postgres.password",
            POSTGRES + "auth-password.html",
        ),
        (
            "realtime-database-unreachable",
            "Realtime restarts for ever: `connection refused`, `nxdomain`, `unknown registry` or a timeout",
            "DB_HOST and DB_PORT of the container lead to no Postgres; it gives up after 15 s and does not try again",
            f"correct them, with a restart policy for when Postgres is late; here: {UP}",
            REALTIME + "/blob/main/ENVS.md",
        ),
        (
            "realtime-database-stalled",
            "/healthcheck answers; new websockets, and the management API, wait for ever or get 500",
            "Realtime's own connections to Postgres were cut or hang: Postgres was restarted, the network between them "
            "was lost, or each waits for a lock",
            "wait half a minute, in which Realtime opens new ones; if it lasts, look for locks (`SELECT pid, "
            "wait_event_type, query FROM pg_stat_activity`), then `docker restart {container}`",
            POSTGRES + "monitoring-stats.html#MONITORING-PG-STAT-ACTIVITY-VIEW",
        ),
        (
            "realtime-not-listening",
            "502; `connect() failed (111: Connection refused)`",
            "Realtime runs and does not listen yet (it needs 3 to 15 s), or on another port",
            "wait; if it lasts, `docker logs {container}`",
            REALTIME + "/blob/main/ENVS.md",
        ),
        (
            "realtime-unhealthy",
            "/healthcheck does not answer 200",
            "Realtime is not up, or something else listens there",
            "check realtime.host_port; `docker restart {container}`",
            REALTIME,
        ),
        (
            "search-path-wrong",
            "`TenantNotFound`, though the row is there; tenants in schema public",
            "DB_AFTER_CONNECT_QUERY is missing or names another schema than _realtime, where the tenants are",
            f"set `DB_AFTER_CONNECT_QUERY=SET search_path TO _realtime`; here: {UP}",
            SUPABASE + "self-hosting/docker",
        ),
        (
            "tenant-tables-missing",
            '500 on the websocket; log `relation "tenants" does not exist`',
            "schema _realtime is there, and Realtime's own tables are not: it makes them when it starts",
            "`docker restart {container}`, then `make up`, which writes the tenant",
            REALTIME,
        ),
        (
            "tenants-in-two-schemas",
            "edits of a tenant change nothing",
            "Realtime once ran with another search_path and left a second set of tables",
            "drop the tables tenants, extensions and schema_migrations of schema {schema}, after a look into them",
            POSTGRES + "ddl-schemas.html#DDL-SCHEMAS-PATH",
        ),
        (
            "management-api-secret-missing",
            "the management API answers 500",
            "API_JWT_SECRET is missing",
            f"set it, different from the JWT secret; here: {UP}",
            REALTIME + "/blob/main/ENVS.md",
        ),
        (
            "management-api-secret-differs",
            "the management API answers 403 to the right token",
            "the running container has another API_JWT_SECRET than realtime.api_jwt_secret",
            f"{UP}, which makes the container again",
            REALTIME + "/blob/main/ENVS.md",
        ),
        (
            "management-api-open",
            "nothing, until somebody reads, changes or deletes tenants",
            "the public anon key opens the management API, because API_JWT_SECRET equals the tenant's jwt_secret",
            f"give API_JWT_SECRET a value of its own (`make secrets`); here: {UP}",
            REALTIME + "/blob/main/ENVS.md",
        ),
        (
            "metrics-closed",
            "/metrics answers 500",
            "METRICS_JWT_SECRET is missing (optional before 2.78.5)",
            f"set it; here: {UP}",
            REALTIME + "/blob/main/ENVS.md",
        ),
        (
            "realtime-log-error",
            "errors in the log of Realtime",
            "Realtime reports a trouble that no check has explained",
            SHOW_LOG,
            REALTIME + "#readme",
        ),
    ),
    *_area(
        "Tenant",
        (
            "tenant-missing",
            "empty 403 on the websocket, CHANNEL_ERROR; log `TenantNotFound: Tenant not found: …`",
            "no tenant has the name that reaches Realtime, the first label of the Host header; "
            "only realtime-dev is seeded",
            f"{UP}, or `PUT /api/tenants/{{tenant}}` of the management API",
            REALTIME + "#readme",
        ),
        (
            "tenant-extension-missing",
            "websocket opens, no join succeeds",
            "the tenant has no extension postgres_cdc_rls, which holds its connection",
            f"{UP}, or PUT the tenant with its extensions",
            REALTIME + "#readme",
        ),
        (
            "tenant-suspended",
            "403 on the websocket",
            "the tenant is suspended (older versions than 2.34.32 only refuse its database connection)",
            "`UPDATE _realtime.tenants SET suspend = false WHERE external_id = '{tenant}'`, then restart Realtime",
            REALTIME + "#readme",
        ),
        (
            "db-enc-key-changed",
            "500 on the websocket",
            "the tenant's secrets are encrypted with another DB_ENC_KEY",
            f"set the old key back, or write the tenant again: {UP}",
            REALTIME + "/blob/main/ENVS.md",
        ),
        (
            "db-enc-key-differs",
            "nothing, until Realtime's container is made again",
            "the running container has another DB_ENC_KEY than realtime.db_enc_key, and the tenant's secrets are "
            "encrypted with the container's",
            f"{UP}, which makes the container again and writes the tenant with the declared key; or set the old key "
            "back",
            REALTIME + "/blob/main/ENVS.md",
        ),
        (
            "tenant-secret-differs",
            "empty 403 on the websocket; log `signature_error`",
            "the tenant's jwt_secret is not the secret that signs the keys",
            f"{UP}, or PUT the tenant with the right jwt_secret",
            REALTIME + "#readme",
        ),
        (
            "tenant-connection-differs",
            "CHANNEL_ERROR; log `UnableToConnectToTenantDatabase`",
            "the tenant's connection settings lead elsewhere than to the database with the tables",
            f"{UP}, or PUT the tenant with the right {{settings}}",
            REALTIME + "#readme",
        ),
        (
            "tenant-wants-ssl",
            "CHANNEL_ERROR at every join; log `ssl not available`",
            "the tenant's connection enforces SSL, as it does by default, and the server has none",
            f"{UP}, or PUT the tenant with `ssl_enforced: false`",
            REALTIME + "#readme",
        ),
        (
            "tenant-publication-differs",
            "the system error `Unable to subscribe to changes …`, or silence",
            "the tenant reads another publication",
            f"{UP}, or PUT the tenant with publication supabase_realtime",
            REALTIME + "#readme",
        ),
        (
            "tenant-limits-differ",
            "clients are refused earlier or later than declared",
            "somebody changed the tenant's limits",
            f"{UP} sets them back",
            SUPABASE + "realtime/quotas",
        ),
        (
            "tenant-poll-differs",
            "events come later than they should, or Postgres is busy",
            "somebody changed the tenant's polling",
            f"{UP} sets it back",
            REALTIME + "#readme",
        ),
        (
            "tenant-cannot-connect",
            "CHANNEL_ERROR at every join",
            "Realtime cannot connect the tenant to its database, or not prepare it",
            SHOW_LOG,
            REALTIME + "#readme",
        ),
        (
            "websocket-refused",
            "empty 403 on the websocket, without the gateway",
            "Realtime refuses this tenant or key; it caches tenants, and that there is none, for 30 s",
            "wait half a minute; if it lasts, " + SHOW_LOG,
            REALTIME + "#readme",
        ),
    ),
    *_area(
        "Keys",
        (
            "key-malformed",
            "empty 403 on the websocket, or a key that never expires",
            "the key is not a JWT signed with HS256 and with `typ: JWT` in its header, or its claim exp is no time in "
            "seconds",
            "take the key from `pulumi stack output anon_key`, whole",
            "https://www.rfc-editor.org/rfc/rfc7519",
        ),
        (
            "key-claims-missing",
            "empty 403 on the websocket; log `Fields role and exp are required in JWT`",
            "the key lacks the claim role or exp",
            "issue it again with both; here: `pulumi stack output anon_key`",
            REALTIME + "#readme",
        ),
        (
            "key-role-wrong",
            "everybody sees every row, or nobody any",
            "the key given out as {expected} names another role",
            "give out the key of role {expected}; never the service_role key to a browser",
            SUPABASE + "api/api-keys",
        ),
        (
            "key-expired",
            "empty 403 on the websocket, on a set-up that worked",
            "the key has expired",
            "raise jwt.issued_at or jwt.lifetime_days, then `make up`, and hand out the new key",
            SUPABASE + "api/api-keys",
        ),
        (
            "key-expires-soon",
            "nothing yet",
            "the key ends in {days} days",
            "raise jwt.issued_at or jwt.lifetime_days, then `make up`, and hand out the new key in time",
            SUPABASE + "api/api-keys",
        ),
        (
            "key-signature-wrong",
            "empty 403 on the websocket; log `signature_error`",
            "the key is signed with another secret than the tenant's jwt_secret",
            "take the key from `pulumi stack output anon_key`, or sign it with the tenant's secret",
            "https://www.rfc-editor.org/rfc/rfc7519",
        ),
    ),
    *_area(
        "Gateway",
        (
            "gateway-config-invalid",
            "the gateway restarts for ever: `error parsing declarative config file`; or it will, once it is restarted",
            "Kong's declarative file is not valid",
            f"correct the place that the log names (`kong config parse FILE` checks it); here: {UP}",
            "https://docs.konghq.com/gateway/2.8.x/reference/db-less-and-declarative-config/",
        ),
        (
            "gateway-unreachable",
            "connection refused",
            "nothing listens at the gateway's address",
            "check the URL (gateway.host, gateway.port); start the gateway",
            KONG_ROUTES,
        ),
        (
            "gateway-hangs",
            "the connection is taken and never answered",
            "the gateway, or Realtime behind it, does not answer",
            "restart the one whose log is silent",
            KONG_ROUTES,
        ),
        (
            "route-missing",
            "404 `no Route matched with those values`",
            "the gateway has no route for the path",
            f"add service `…:4000/socket/` with path `/realtime/v1/`; here: {UP}",
            KONG_ROUTES + "#route-object",
        ),
        (
            "route-path-wrong",
            "404 on the websocket",
            "the route leads to a path that Realtime does not serve: it must become /socket/websocket",
            f"service `…:4000/socket/`, path `/realtime/v1/`, `strip_path: true`; here: {UP}",
            KONG_ROUTES + "#route-object",
        ),
        (
            "route-preserves-host",
            "empty 403 on the websocket; log `Tenant not found: 127`",
            "the gateway hands the client's host on, and Realtime takes its first label for the tenant",
            f"`preserve_host: false`, and the tenant's name as the host of the service; here: {UP}",
            KONG_ROUTES + "#route-object",
        ),
        (
            "upstream-refused",
            "502 `An invalid response was received from the upstream server`",
            "the gateway finds Realtime's address and nothing listens there: a wrong port, or Realtime is starting",
            f"wait some seconds after a restart; else correct the service's port (4000); here: {UP}",
            KONG_ROUTES + "#service-object",
        ),
        (
            "upstream-unresolved",
            "503 `name resolution failed`",
            "the gateway cannot resolve the service's host: Realtime is stopped, or its alias is missing",
            f"{UP} puts the alias back; elsewhere correct the service's host",
            KONG_ROUTES + "#service-object",
        ),
        (
            "upstream-timeout",
            "504 `The upstream server is timing out`",
            "Realtime's address does not answer",
            "restart Realtime; check that both are on one network",
            KONG_ROUTES + "#service-object",
        ),
        (
            "alias-missing",
            "503 `name resolution failed`",
            "Realtime's container has lost the network alias by which the gateway calls it",
            f"{UP}, or `docker network disconnect` and `connect --alias {{alias}}`",
            DOCKER + "reference/cli/docker/network/connect/#alias",
        ),
        (
            "key-unknown-to-gateway",
            "401 `Invalid authentication credentials`",
            "the key is good and no consumer of the gateway has it",
            f"give consumer anon the key; here: {UP}",
            KONG + "key-auth/",
        ),
        (
            "key-not-looked-for",
            "401 `No API key found in request`, with a key",
            "key-auth looks for the key elsewhere than in the query or header apikey",
            f"leave key_names of key-auth at `apikey`; here: {UP}",
            KONG + "key-auth/",
        ),
        (
            "consumer-not-allowed",
            "403 `You cannot consume this service`",
            "the plugin acl does not allow the group of the consumer with this key",
            f"put the consumer into an allowed group; here: {UP}",
            KONG + "acl/",
        ),
        (
            "realtime-refuses-websocket",
            "empty 403 on the websocket",
            "Realtime refuses what the gateway hands on: another tenant by its host, or a key that it does not take",
            "look for `TenantNotFound` or `InvalidJWTToken` in Realtime's log; the service's host must begin with the "
            "name of a tenant ({tenants})",
            REALTIME + "#readme",
        ),
        (
            "websocket-error",
            "{status} on the websocket",
            "Realtime or the gateway fails at the upgrade",
            "the logs of both say more",
            KONG_ROUTES,
        ),
        (
            "anonymous-consumer-missing",
            "500 for a wrong key or none",
            "key-auth's `anonymous` names a consumer that does not exist",
            f"name an existing consumer (anon), or remove `anonymous`; here: {UP}",
            KONG + "key-auth/",
        ),
        (
            "gateway-lets-everybody-in",
            "nothing: a wrong key and none pass the gateway",
            "key-auth is missing or has `anonymous`, so that Realtime's own check of the JWT is the only one left",
            f"`pulumi config set gateway.anonymous false`, then {UP}, unless it is meant",
            KONG + "key-auth/",
        ),
        (
            "gateway-refuses-anonymous",
            "401 without a key, though gateway.anonymous is true",
            "the running gateway has another key-auth than declared",
            f"{UP}, which makes the container again",
            KONG + "key-auth/",
        ),
        (
            "cors-missing",
            "browsers fail at the preflight, other clients work",
            "no cors plugin answers the preflight before key-auth does",
            f"add the plugin cors to the service; here: {UP}",
            KONG + "cors/",
        ),
        (
            "cors-origin-refused",
            "browsers of one origin fail",
            "the origin is not among those of the cors plugin",
            "add it to gateway.cors_origins, then `make up`",
            KONG + "cors/",
        ),
        (
            "rest-route-wrong",
            "broadcast over HTTP fails with 404 or 401",
            "the route of the REST API is missing, or leads elsewhere than to /api of the tenant's host",
            f"service `…:4000/api`, path `/realtime/v1/api`, `strip_path: true`; here: {UP}",
            KONG_ROUTES + "#route-object",
        ),
        (
            "management-paths-open",
            "nothing: requests to the management API reach Realtime from outside",
            "the gateway does not close {path}, and only the API's own secret protects it",
            f"close it with request-termination 403; here: {UP}",
            KONG + "request-termination/",
        ),
        (
            "idle-timeout-short",
            "idle websockets close after a minute, background tabs above all",
            "the service's read_timeout is {seconds} s: Kong closes a websocket that is idle for longer",
            f"set read_timeout and write_timeout of the websocket's service to a day; here: {UP}",
            KONG_ROUTES + "#service-object",
        ),
    ),
    *_area(
        "The whole path",
        (
            "probe-failed",
            "an insert does not reach a subscriber",
            "none of the checks before explains it; the probe's own words do",
            "{likely}",
            SUPABASE + "realtime/postgres-changes",
        ),
    ),
)

CAUSES: dict[str, Cause] = {cause.id: cause for cause in _CAUSES}
"""By id, in the order of a change's path."""

PLACEHOLDER = re.compile(r"\{(\w+)\}")


def markdown() -> str:
    """The tables of docs/failures.md: symptom, cause, cure, an area at a time."""
    lines = [
        "# Failures: symptom → cause → cure",
        "",
        "What `python -m doctor` can name, in the order of a change's path. Made by",
        "`python -m doctor causes --markdown > docs/failures.md` from `doctor/causes.py`; do not edit it by hand.",
        "",
        "`make up` asks the world, updates and probes: it repairs what somebody changed by hand. What stands behind",
        '"or" is for set-ups that this program did not make.',
    ]
    area = None
    for cause in CAUSES.values():
        if cause.area != area:
            area = cause.area
            lines += ["", f"## {area}", "", "| symptom | cause | cure | id |", "|---|---|---|---|"]
        cells = (cause.symptom, cause.cause, f"{cause.cure} ([page]({cause.page}))")
        text = " | ".join(_cell(cell) for cell in cells)
        lines.append(f'| {text} | <a id="{cause.id}"></a>`{cause.id}` |')
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """A text in a table of Markdown; placeholders stand in angle brackets in code, and are emphasised elsewhere."""
    parts = text.replace("|", "\\|").split("`")
    return "`".join(PLACEHOLDER.sub(r"<\1>" if number % 2 else r"*\1*", part) for number, part in enumerate(parts))
