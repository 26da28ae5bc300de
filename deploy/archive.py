"""What pg_restore --list says of a dump, and which of its entries a restore takes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

MAGIC = b"PGDMP"
"""How every archive of pg_dump --format=custom begins (src/bin/pg_dump/pg_backup_archiver.c)."""
NEVER = frozenset(
    {
        # The program's own, which it makes with the tables that are declared.
        "PUBLICATION",
        "PUBLICATION TABLE",
        "PUBLICATION TABLES IN SCHEMA",
        # It would connect to another server and take its changes.
        "SUBSCRIPTION",
        "SUBSCRIPTION TABLE",
    }
)
ENTRY = re.compile(r"(?P<id>\d+); \d+ \d+ (?P<kind>[A-Z]+(?: [A-Z]+)*) (?P<schema>\S+) (?P<rest>.*)")
"""A line of the list: dump id; catalog and object ids, kind, schema or ``-``, name, owner."""
NO_SCHEMA = "-"
SCHEMA_OF = re.compile(r"SCHEMA (\S+)")
"""The name of an entry about a schema: its privileges, its comment."""


@dataclass(frozen=True)
class Entry:
    """A line of the list. Names come as they are, without quotes, the owner at the end."""

    line: str
    kind: str
    schema: str
    rest: str

    @property
    def concerns(self) -> str:
        """The schema that the entry belongs to or is about; ``-`` for what is in none."""
        if self.schema != NO_SCHEMA:
            return self.schema
        if self.kind == "SCHEMA":
            return self.rest.partition(" ")[0]
        about = SCHEMA_OF.match(self.rest)
        return about[1] if about else NO_SCHEMA


@dataclass(frozen=True)
class Contents:
    """The contents of an archive."""

    server: str
    """Version of the Postgres that was dumped."""
    entries: tuple[Entry, ...]

    @property
    def server_major(self) -> int:
        """Major version of the Postgres that was dumped."""
        return int(re.split(r"\D", self.server, maxsplit=1)[0])

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables whose rows it holds, as schema.table."""
        return tuple(
            f"{entry.schema}.{entry.rest.rpartition(' ')[0]}" for entry in self.entries if entry.kind == "TABLE DATA"
        )


def parse(listing: str) -> Contents:
    """The contents as ``pg_restore --list`` prints them. Raises ValueError when it is something else."""
    version = re.search(r"^; +Dumped from database version: (\d+.*)$", listing, re.MULTILINE)
    if version is None:
        raise ValueError("the list does not say which Postgres was dumped")
    entries = [
        Entry(line=line, kind=found["kind"], schema=found["schema"], rest=found["rest"])
        for line in listing.splitlines()
        if (found := ENTRY.fullmatch(line))
    ]
    return Contents(server=version[1].strip(), entries=tuple(entries))


def selected(contents: Contents, *, kept: Collection[str], event_triggers: Collection[str]) -> Iterator[Entry]:
    """The entries that a restore takes, in their order.

    ``kept`` are the schemas of the target that stay as they are, ``event_triggers`` the ones that it has already.
    Of Realtime's schema come its tables' policies alone, which the application makes for private channels.
    """
    for entry in contents.entries:
        if entry.kind in NEVER:
            continue
        if entry.kind == "EVENT TRIGGER" and entry.rest.rpartition(" ")[0] in event_triggers:
            continue
        if (entry.concerns == "realtime" and entry.kind == "POLICY") or entry.concerns not in kept:
            yield entry
