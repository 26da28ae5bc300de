"""The commands of ``python -m deploy``: each prepares, runs the engine, and returns its exit code."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import docker
from pydantic import TypeAdapter, ValidationError

import settings
from deploy import (
    backend,
    backup,
    docker_objects,
    generated,
    preflight,
    pulumi_cli,
    recovery,
    report,
    rotation,
    scrape,
    state,
)
from deploy.container_commands import ContainerCommands
from deploy.engine import Engine, run_attached
from deploy.errors import DeployError
from deploy.events import outcome
from providers.connection import conninfo

PROJECT = Path(__file__).resolve().parent.parent
REFRESHED = ("--refresh", "--run-program")
"""Ask the world, not the state; and run the program first, since only it configures the dynamic providers."""

DRIFTED = 7
"""The engine's exit code for changes where none were expected."""

POSTGRES_PORT = 5432
"""On which Postgres listens in its container."""

KILLED = 128
"""Exit codes from here on say that a signal ended the engine."""


@dataclass(frozen=True)
class Prepared:
    """The engine for a stack, and what it was found to need."""

    engine: Engine
    backend: Path | None
    """The folder of a file backend."""
    added: dict[str, str]
    """What this process put into the engine's environment, which a user's own shell has not got."""


def prepare(stack: str) -> Prepared:
    """The CLI, the backend and the passphrase for a stack. Raises DeployError when one is not to be had."""
    chosen = backend.choose(PROJECT, stack, os.environ)
    command = pulumi_cli.find_or_install(PROJECT)
    added = dict(chosen.environ)
    path = pulumi_cli.path_with(command, os.environ)
    if path != os.environ.get("PATH", os.defpath):
        added["PATH"] = path
    engine = Engine(command=command.command, project=PROJECT, stack=stack, environ={**os.environ, **added})
    return Prepared(engine=engine, backend=chosen.directory(PROJECT), added=added)


def connect(stack: str) -> docker.DockerClient:
    """A client of the stack's Docker engine. Raises DeployError when it does not answer."""
    return docker_objects.connect(os.environ, backend.docker_host(PROJECT, stack))


def load_settings(engine: Engine) -> settings.Settings:
    """The stack's settings as the program will see them. Raises SettingsError."""
    return settings.load(engine.config(), stack=engine.stack, environ=os.environ)


def up(stack: str, started: float | None) -> int:
    """Make or update the stack, prove that an insert reaches a subscriber, and say how to connect."""
    begun = time.time() if started is None else started
    client = connect(stack)
    prepared = prepare(stack)
    engine = prepared.engine
    recovery.refuse_held(prepared.backend, stack)
    engine.select(create=True)
    exported = engine.export()
    if not state.resources(exported):
        generated.refuse_copied(PROJECT, stack)
    wanted = load_settings(engine)
    check_external(engine, wanted)
    preflight.fetch_images(client, preflight.images(wanted))
    check_ports(client, wanted)
    interrupted = recover(prepared, client)
    if faults := preflight.upgrade_faults(client, wanted):
        raise DeployError(*faults)
    pending = wanted.rotation
    if pending is not None:
        recovery.say(f"giving {pending.key} its next value")
        if code := bring_database_back(engine, client, wanted):
            return code
        rotation.put_in_place(engine, client, wanted, pending)
    code = engine.run("up", "--yes", "--skip-preview", *REFRESHED)
    if interrupted and 0 < code < KILLED and clear_left_over(prepared, client, engine.export()):
        # The providers of a killed engine live on for a while, and one of them finished what it had been asked for.
        code = engine.run("up", "--yes", "--skip-preview", *REFRESHED)
    if code == 0 and has_migrated(exported, engine):
        # What a migration dropped and made again has no policy and no grant and is not published: all of that was
        # compared before the migration ran.
        code = engine.run("up", "--yes", "--skip-preview", *REFRESHED)
    if code:
        return unfinished(wanted, code)
    if pending is not None:
        rotation.prove_and_forget(engine, client, load_settings(engine), pending)
    if code := run_doctor(engine, "probe"):
        return code
    print_endpoints(prepared, seconds=time.time() - begun)
    return 0


def rotate(stack: str, name: str) -> int:
    """Give a secret another value everywhere, see that the old one is refused, and prove that the stack works.

    What an interrupted one has begun is finished, with the value that it had chosen.
    """
    prepared = prepare(stack)
    recovery.refuse_held(prepared.backend, stack)
    prepared.engine.select(create=False)
    rotation.begin(prepared.engine, load_settings(prepared.engine), name)
    return up(stack, None)


def bring_database_back(engine: Engine, client: docker.DockerClient, wanted: settings.Settings) -> int:
    """Make the container of a Postgres that is gone and has data again, so that it can take a password; exit code.

    Nothing else is updated meanwhile: which password Postgres knows is not certain.
    """
    if wanted.postgres.external is not None:
        return 0
    name = f"{wanted.name}-postgres"
    if not rotation.holds_data(client, wanted) or any(c.name == name for c in docker_objects.containers(client)):
        return 0
    targets = [f"--target=**{component}**" for component in ("RealtimeStack::", "StackNetwork", "PostgresServer")]
    return engine.run("up", "--yes", "--skip-preview", *REFRESHED, *targets)


def has_migrated(before: Mapping[str, Any], engine: Engine) -> bool:
    """Whether an update of a stack with migrations has run others; the first ones find nothing to drop."""
    known = state.inputs_of(before, state.MIGRATIONS)
    now = state.inputs_of(engine.export(), state.MIGRATIONS) if known else None
    return known is not None and now is not None and known["files"] != now["files"]


def unfinished(wanted: settings.Settings, code: int) -> int:
    """Say which rotation a failed update has left unfinished; the same exit code."""
    if wanted.rotation is not None:
        print(rotation.unfinished(wanted.rotation, wanted.stack), file=sys.stderr)
    return code


def check_external(engine: Engine, wanted: settings.Settings) -> None:
    """Raises DeployError listing all that an external Postgres lacks.

    While its password is between two values it may be either: the rotation finds out, and the program checks the rest.
    """
    if wanted.rotation is not None and wanted.rotation.key == "postgres.password":
        return
    if faults := preflight.external_faults(wanted, engine.export()):
        raise DeployError(*faults)


def check_ports(client: docker.DockerClient, wanted: settings.Settings) -> None:
    """Raises DeployError naming every port that somebody else holds."""
    faults = preflight.port_faults(
        wanted.stack,
        preflight.wanted_ports(wanted),
        docker_objects.containers(client),
        local=preflight.engine_is_local(client),
    )
    if faults:
        raise DeployError(*faults)


def recover(prepared: Prepared, client: docker.DockerClient) -> bool:
    """Clear what an interrupted update left behind, in the state and outside it; whether there was one."""
    engine = prepared.engine
    recovery.release_lock(engine, prepared.backend)
    exported = engine.export()
    clear_left_over(prepared, client, exported)
    recovery.clear_never_started(client, exported)
    fault = recovery.postgres_fault(client, engine.stack, exported)
    if fault is not None and recovery.GONE not in fault:
        raise DeployError(f"{fault}; then run `make up` again")
    return recovery.settle_pending(engine, exported)


def clear_left_over(prepared: Prepared, client: docker.DockerClient, exported: Mapping[str, Any]) -> bool:
    """Clear what an interrupted update left behind outside the state; whether there was anything.

    Raises DeployError, before anything is touched, when it is another state's, or of an update that is under way.
    """
    engine = prepared.engine
    recovery.refuse_held(prepared.backend, engine.stack)
    leftovers = recovery.find_leftovers(client, engine.stack, exported)
    recovery.refuse_another_states(engine.stack, exported, leftovers)
    if prepared.backend is None and (
        leftovers or state.pending_operations(exported) or recovery.never_started(client, exported)
    ):
        recovery.refuse_updated(engine, exported)
    return recovery.clear(client, leftovers)


def preview(stack: str) -> int:
    """Show what an update would change, and fail when the policy pack objects to it."""
    engine = prepare(stack).engine
    engine.select(create=True)
    check_external(engine, load_settings(engine))
    return engine.run("preview", "--diff", *policy_pack(engine.project))


def policy_pack(project: Path) -> tuple[str, ...]:
    """The options by which the engine asks the project's policy pack; none for a project without one."""
    pack = project / "policy"
    if not (pack / "PulumiPolicy.yaml").exists():
        return ()
    return "--policy-pack", str(pack), "--policy-pack-config", str(pack / "config.json")


def drift(stack: str) -> int:
    """0 when the world is as declared; DRIFTED when it is not, with what differs.

    Without its Postgres the engine cannot look at anything in it and ends with an error: that drift is said here.
    """
    client = connect(stack)
    engine = prepare(stack).engine
    engine.select(create=False)
    if fault := unobservable(engine, client):
        print(fault, file=sys.stderr)
        return DRIFTED
    return engine.run("preview", *REFRESHED, "--expect-no-changes", "--diff")


def unobservable(engine: Engine, client: docker.DockerClient) -> str | None:
    """Drift that the engine cannot look past, in one line; None when it can compare."""
    wanted = load_settings(engine)
    if wanted.rotation is not None:
        return rotation.unfinished(wanted.rotation, wanted.stack)
    exported = engine.export()
    fault = recovery.postgres_fault(client, engine.stack, exported)
    return fault or "\n".join(preflight.external_faults(wanted, exported)) or None


def report_drift(stack: str) -> int:
    """What `drift` finds, as Markdown on stdout, the engine's own words on stderr; its exit code."""
    client = connect(stack)
    engine = prepare(stack).engine
    engine.select(create=False)
    if fault := unobservable(engine, client):
        print(report.unobservable_report(stack, fault), end="")
        return DRIFTED
    code, events = engine.observe("preview", *REFRESHED, "--expect-no-changes", "--diff")
    print(report.drift_report(stack, outcome(events)), end="")
    return code


def report_preview(stack: str) -> int:
    """What `preview` shows, as Markdown on stdout, the engine's own words on stderr; its exit code."""
    engine = prepare(stack).engine
    engine.select(create=True)
    check_external(engine, load_settings(engine))
    code, events = engine.observe("preview", "--diff", *policy_pack(engine.project))
    print(report.preview_report(stack, outcome(events)), end="")
    return code


def probe(stack: str) -> int:
    """Prove that an insert reaches a subscriber, as a browser would see it."""
    engine = prepare(stack).engine
    engine.select(create=False)
    return run_doctor(engine, "probe")


def run_doctor(engine: Engine, command: str) -> int:
    """Run a command of the doctor with the engine's environment; its exit code."""
    return run_attached(
        [sys.executable, "-m", "doctor", command, "--stack", engine.stack], cwd=engine.project, environ=engine.environ
    )


def make_secrets(stack: str) -> int:
    """Generate the secrets that the stack lacks; one that is set is never touched."""
    generated.refuse_copied(PROJECT, stack)
    engine = prepare(stack).engine
    engine.select(create=True)
    present = engine.config()
    missing = [key for key in settings.secret_keys() if f"{settings.NAMESPACE}:{key}" not in present]
    if (server := present.get(f"{settings.NAMESPACE}:postgres.external.host")) and "postgres.password" in missing:
        missing.remove("postgres.password")
        print(
            f"postgres.password: is that of postgres.user on {server}; `pulumi config set --secret postgres.password`"
        )
    for key in missing:
        engine.ask("config", "set", "--secret", key, stdin=generated.generate(key))
        print(f"{key}: generated")
    algorithm = str(present.get(f"{settings.NAMESPACE}:jwt.algorithm", settings.JwtAlgorithm.HS256))
    if algorithm != settings.JwtAlgorithm.HS256 and not present.get(f"{settings.NAMESPACE}:{settings.PRIVATE_KEY}"):
        missing.append(settings.PRIVATE_KEY)
        private_key = generated.generate_private_key(algorithm)
        engine.ask("config", "set", "--secret", settings.PRIVATE_KEY, stdin=private_key)
        print(f"{settings.PRIVATE_KEY}: generated")
    if not missing:
        print(f"stack {stack} has all its secrets; nothing was changed")
    return 0


def destroy(stack: str) -> int:
    """Remove the stack; its data volumes too, unless postgres.protect.

    Nothing is touched when the state does not know of the protection yet, or is not the one of the containers.
    """
    client = connect(stack)
    prepared = prepare(stack)
    engine = prepared.engine
    recovery.refuse_held(prepared.backend, stack)
    engine.select(create=False)
    recovery.release_lock(engine, prepared.backend)
    exported = engine.export()
    protected = is_protected(engine.config())
    if fault := recovery.retention_fault(stack, exported, protected=protected):
        raise DeployError(fault)
    clear_left_over(prepared, client, exported)
    recovery.settle_pending(engine, exported)
    # Without the program, whatever PULUMI_RUN_PROGRAM says: it would ask a Postgres that need not be there any more.
    if code := engine.run("destroy", "--yes", "--skip-preview", "--run-program=false"):
        return code
    recovery.clear(client, recovery.find_leftovers(client, stack, engine.export()))
    recovery.clear_volumes(client, stack, known=state.names(exported, state.VOLUME), protected=protected)
    return 0


def is_protected(config: Mapping[str, Any]) -> bool:
    """Whether postgres.protect is set, read as the settings read it, whose other faults keep nobody from destroying.

    Raises DeployError when it is neither true nor false.
    """
    try:
        return TypeAdapter(bool).validate_python(config.get(f"{settings.NAMESPACE}:postgres.protect", False))
    except ValidationError:
        raise DeployError("postgres.protect: is neither true nor false; write one of the two") from None


def back_up(stack: str, to: Path | None) -> int:
    """Dump the stack's database into a new file that only its owner may read."""
    client = connect(stack)
    prepared = prepare(stack)
    prepared.engine.select(create=False)
    server = database_server(prepared, client)
    folder = Path() if Path.cwd() == PROJECT else PROJECT
    path = to or backup.default_file(folder, stack, datetime.now(UTC))
    try:
        with terminated_as_interrupted():
            contents = backup.back_up(server, path)
    except KeyboardInterrupt:
        raise DeployError("interrupted; no backup was made") from None
    print(f"{path}: {path.stat().st_size} bytes, {len(contents.tables)} tables of Postgres {contents.server_major}")
    return 0


def restore(stack: str, path: Path, *, replace: bool) -> int:
    """Put a dump in the place of what the stack's database holds, then bring the stack up to the declared state.

    Realtime is stopped meanwhile: else its subscribers would be sent every restored row as an insert.
    """
    replaced = False
    try:
        with terminated_as_interrupted():
            client = connect(stack)
            prepared = prepare(stack)
            recovery.refuse_held(prepared.backend, stack)
            prepared.engine.select(create=False)
            server = database_server(prepared, client)
            listing = backup.check_restorable(server, path, backup.read_contents(server, path), replace=replace)
            with recovery.stopped(client, f"{settings.NAMESPACE}-{stack}-realtime"):
                backup.replace_database(server, path, listing, replace=replace)
                replaced = True
    except KeyboardInterrupt:
        became = f"{path} is restored; finish with `make up STACK={stack}`" if replaced else "nothing was changed"
        raise DeployError(f"interrupted; {became}") from None
    print(f"{path} is restored; bringing stack {stack} up to the declared state", flush=True)
    return up(stack, None)


def scrape_config(stack: str, token_file: Path | None, exporter: str) -> int:
    """Print what Prometheus is told about the stack, and write the token with which it reads Realtime's metrics."""
    engine = prepare(stack).engine
    engine.select(create=False)
    wanted = load_settings(engine)
    path = (token_file or PROJECT / "observability" / f"{stack}-metrics.token").absolute()
    scrape.write_token(wanted, path)
    print(scrape.rendered(scrape.scrape_config(wanted, token_file=path, exporter=exporter)), end="")
    print(f"{path} holds the token; only its owner may read it", file=sys.stderr)
    if not wanted.gateway.status_port:
        print(
            "the gateway's figures are not published; `pulumi config set gateway.status_port 8100` and `make up` "
            "publish them on loopback",
            file=sys.stderr,
        )
    return 0


def database_server(prepared: Prepared, client: docker.DockerClient) -> backup.Server:
    """The stack's Postgres, which must be running. Raises DeployError."""
    engine = prepared.engine
    wanted = load_settings(engine)
    if wanted.rotation is not None:
        raise DeployError(rotation.unfinished(wanted.rotation, wanted.stack))
    postgres = wanted.postgres
    if postgres.external is not None:
        raise DeployError(backup.external_fault(engine.stack, postgres))
    exported = engine.export()
    if fault := recovery.postgres_fault(client, engine.stack, exported):
        raise DeployError(fault)
    name = f"{settings.NAMESPACE}-{engine.stack}-postgres"
    if state.id_of(exported, state.CONTAINER, name) is None:
        raise DeployError(f"stack {engine.stack} has no Postgres yet; make it with `make up STACK={engine.stack}`")
    return backup.Server(
        commands=ContainerCommands(client, name),
        host=name,
        port=POSTGRES_PORT,
        user=postgres.user,
        database=postgres.database,
        password=postgres.password.get_secret_value(),
        conninfo=conninfo(postgres),
    )


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM is what Ctrl-C is, so that what was begun is ended in good order."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def environment(stack: str) -> int:
    """Print the variables with which ``pulumi`` by hand sees the same stack, for ``eval``."""
    for line in exports(prepare(stack).added):
        print(line)
    return 0


def exports(added: dict[str, str]) -> list[str]:
    """Shell commands that set variables."""
    return [f"export {variable}={shlex.quote(value)}" for variable, value in sorted(added.items())]


def print_endpoints(prepared: Prepared, *, seconds: float) -> None:
    """What a client needs, and how long it took to get there."""
    outputs = prepared.engine.outputs()
    by_hand = {k: v for k, v in prepared.added.items() if k != "PULUMI_SKIP_UPDATE_CHECK"}
    stack = prepared.engine.stack
    anon_key = f"pulumi stack output anon_key --stack {stack}"
    if by_hand:
        anon_key = f'eval "$(.venv/bin/python -m deploy env --stack {stack})"; {anon_key}'
    print(f"supabase-js   createClient('{outputs['url']}', anon_key)")
    print(f"websocket     {outputs['realtime_url']}")
    print(f"anon key      {anon_key}")
    print(f"took          {seconds:.0f} s")
