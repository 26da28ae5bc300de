"""Sample values of Postgres's types: text in a type's input syntax, made from the type alone."""

from __future__ import annotations

import ipaddress
import random
import re
import string
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from doctor.catalog import Kind, Type

INTEGERS = {"int2": 2**15, "int4": 2**31, "int8": 2**63, "oid": 2**31}
TEXTS = ("text", "varchar", "bpchar", "citext", "name")
PLAUSIBLE_TEXTS = (
    "probe", "PROBE", "Probe", "p", "P", "1", "0", "true", "probe@example.com", "https://example.com", "+14155550100",
    "2026-01-01", "12:00", "127.0.0.1", "#000000", "en", "US", "EUR", "00000", "1.0.0", "",
)  # fmt: skip
"""Texts that common CHECK constraints ask for: words, addresses, codes, numbers."""

LONGEST_NAME = 63
MOMENTS: dict[str, Callable[[datetime], str]] = {
    "date": lambda moment: moment.date().isoformat(),
    "time": lambda moment: moment.time().isoformat(),
    "timetz": lambda moment: moment.timetz().isoformat(),
    "timestamp": lambda moment: moment.replace(tzinfo=None).isoformat(),
    "timestamptz": lambda moment: moment.isoformat(),
}
FIXED: dict[str, tuple[str, ...]] = {
    "bool": ("true", "false"),
    "json": ('{"probe": true}', "[]", '"probe"', "1"),
    "jsonb": ('{"probe": true}', "[]", '"probe"', "1"),
    "interval": ("1 second", "1 day", "0", "-1 day"),
    "money": ("1", "0", "-1"),
    "inet": ("127.0.0.1", "10.0.0.0/8", "::1"),
    "cidr": ("127.0.0.0/8", "10.0.0.0/8", "::/0"),
    "macaddr": ("02:00:00:00:00:01",),
    "macaddr8": ("02:00:00:00:00:00:00:01",),
    "char": ("p", "P", "1", "0"),
    "xml": ("<probe/>",),
    "tsvector": ("'probe'",),
    "tsquery": ("'probe'",),
    "pg_lsn": ("0/1",),
    "point": ("(0,0)",),
    "line": ("{1,-1,0}",),
    "lseg": ("[(0,0),(1,1)]",),
    "box": ("(1,1),(0,0)",),
    "path": ("[(0,0),(1,1)]",),
    "polygon": ("((0,0),(1,1),(1,0))",),
    "circle": ("<(0,0),1>",),
    "hstore": ('"probe"=>"true"',),
    "ltree": ("probe",),
}


def candidates(type_: Type, *, unique: bool, rng: random.Random) -> list[str]:
    """Values of a type, in its input syntax, the likeliest first; none for a type that is not known here.

    With ``unique`` the first is one that no other row is likely to have. Of a domain these are the values of its
    base: which of them it accepts only Postgres can say.
    """
    inner = candidates(type_.inner, unique=unique, rng=rng) if type_.inner else []
    by_kind: dict[Kind, Callable[[], list[str]]] = {
        Kind.BASE: lambda: _base(type_, unique, rng),
        Kind.DOMAIN: lambda: inner,
        Kind.ENUM: lambda: list(type_.labels),
        Kind.ARRAY: lambda: [*(f"{{{quoted(value)}}}" for value in inner), "{}"],
        Kind.RANGE: lambda: [*(f"[{quoted(value)},{quoted(value)}]" for value in inner), "empty"],
        Kind.MULTIRANGE: lambda: [*(f"{{{value}}}" for value in inner if value != "empty"), "{}"],
        Kind.COMPOSITE: lambda: [f"({',' * (type_.attributes - 1)})"],
    }
    return by_kind[type_.kind]()


def quoted(value: str) -> str:
    """A value as an element of an array or a bound of a range: in double quotes, which both take."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _base(type_: Type, unique: bool, rng: random.Random) -> list[str]:
    makers: dict[str, Callable[[Type, bool, random.Random], list[str]]] = {
        **dict.fromkeys(INTEGERS, _integers),
        **dict.fromkeys(("numeric", "float4", "float8"), _numbers),
        **dict.fromkeys(TEXTS, _texts),
        **dict.fromkeys(MOMENTS, _moments),
        **dict.fromkeys(("bit", "varbit"), _bits),
        "uuid": _uuids,
        "bytea": _bytes,
        "inet": _addresses,
        "vector": _vectors,
    }
    maker = makers.get(type_.name)
    return maker(type_, unique, rng) if maker else list(FIXED.get(type_.name, ()))


def _integers(type_: Type, unique: bool, rng: random.Random) -> list[str]:
    limit = INTEGERS[type_.name]
    first = [rng.randrange(limit // 2, limit)] if unique else []
    return [str(number) for number in (*first, 1, 0, 2, 10, 50, 100, 1000, 2000, -1, -10)]


def _numbers(type_: Type, unique: bool, rng: random.Random) -> list[str]:
    numbers = ["1", "0", "0.5", "2", "10", "50", "100", "1000", "-1", "-10"]
    if type_.name != "numeric" or type_.modifier < 0:
        return [str(rng.randrange(10**5, 10**6)), *numbers] if unique else numbers
    precision, scale = numeric_precision(type_.modifier)
    fitting = [n for n in numbers if abs(Decimal(n)) < Decimal(10) ** (precision - scale)]
    exact = [n for n in fitting if Decimal(n).scaleb(scale) % 1 == 0]
    if not unique:
        return exact
    return [f"{Decimal(rng.randrange(10 ** (precision - 1), 10**precision)).scaleb(-scale):f}", *exact]


def numeric_precision(modifier: int) -> tuple[int, int]:
    """Precision and scale in a numeric column's modifier (postgres, src/backend/utils/adt/numeric.c)."""
    packed = modifier - 4
    return (packed >> 16) & 0xFFFF, ((packed & 0x7FF) ^ 1024) - 1024


def _texts(type_: Type, unique: bool, rng: random.Random) -> list[str]:
    longest = LONGEST_NAME if type_.name == "name" else type_.modifier - 4 if type_.modifier > 0 else None
    first = [f"probe-{rng.getrandbits(64):016x}"] if unique else []
    if longest is not None and unique and longest < len(first[0]):
        first = ["".join(rng.choices(string.ascii_lowercase + string.digits, k=longest))]
    return list(dict.fromkeys(text[:longest] for text in (*first, *PLAUSIBLE_TEXTS)))


def _moments(type_: Type, unique: bool, rng: random.Random) -> list[str]:
    now = datetime.now(UTC)
    moments = [now, now - timedelta(days=400), now + timedelta(days=400), datetime(2000, 1, 1, tzinfo=UTC)]
    if unique:
        moments.insert(0, datetime(5000, 1, 1, tzinfo=UTC) + timedelta(microseconds=rng.randrange(10**16)))
    return [MOMENTS[type_.name](moment) for moment in moments]


def _bits(type_: Type, unique: bool, rng: random.Random) -> list[str]:
    width = type_.modifier if type_.modifier > 0 else 1
    return [f"{rng.getrandbits(width) if unique else 1:0{width}b}", "0" * width]


def _uuids(_: Type, __: bool, rng: random.Random) -> list[str]:
    return [str(uuid.UUID(int=rng.getrandbits(128), version=4))]


def _bytes(_: Type, unique: bool, rng: random.Random) -> list[str]:
    return [f"\\x{(rng.randbytes(8) if unique else b'probe').hex()}", "\\x"]


def _addresses(_: Type, unique: bool, rng: random.Random) -> list[str]:
    return [*([str(ipaddress.IPv6Address((0xFD << 120) | rng.getrandbits(64)))] if unique else []), *FIXED["inet"]]


def _vectors(type_: Type, _: bool, __: random.Random) -> list[str]:
    return [f"[{','.join(['1'] * max(type_.modifier, 1))}]"]


def constants(expression: str) -> list[str]:
    """The constants in a constraint's expression, as candidates for its columns; numbers with their neighbours."""
    strings = [text.replace("''", "'") for text in re.findall(r"'((?:[^']|'')*)'", expression)]
    elements = [
        element.strip('"') for text in strings if re.fullmatch(r"\{.*\}", text) for element in text[1:-1].split(",")
    ]
    bare = re.sub(r"'(?:[^']|'')*'", "", expression)
    found: list[str] = [*strings, *elements]
    for number in re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?", bare):
        around = [float(number) + step for step in (0, 1, -1)] if "." in number else []
        found += [number, *map(str, around)] if around else [str(int(number) + step) for step in (0, 1, -1)]
    return list(dict.fromkeys(found))
