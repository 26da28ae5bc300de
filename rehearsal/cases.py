"""Cases that a person wrote down: somebody makes a change, and what should come of it.

The file is YAML: a list of cases, or a mapping with ``given``, rows that every case finds, and ``cases``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from settings import ApiRole

FORM = "{as: anon, table: public.wells, row: {name: North}, change: insert, expect: {allowed: true, receives: true}}"


class CaseFileError(Exception):
    """A fault in a file of cases: the line, the fault, the cure."""


def _qualified(table: str) -> str:
    if table.count(".") != 1 or not all(table.split(".")):
        raise ValueError(f"{table!r} has no schema; write it like public.{table.strip('.')}")
    return table


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


ModelT = TypeVar("ModelT")
TableName = Annotated[str, AfterValidator(_qualified)]
Values = dict[str, Any]


class Given(_Model):
    """A row that is there before the change."""

    table: TableName
    row: Values


class Update(_Model):
    """An UPDATE, with the columns that it changes."""

    update: Annotated[Values, Field(min_length=1)]


class Expectation(_Model):
    """What should come of a change; what is not said is not looked at."""

    allowed: bool | None = Field(None, description="Whether the subject may make the change.")
    receives: bool | Literal["error"] | list[str] | None = Field(
        None, description="Whether the subject is told when somebody else makes it, and with which columns alone."
    )


class Case(_Model):
    """Somebody, a row, a change of it, and what is expected."""

    name: str | None = None
    as_: ApiRole = Field(alias="as")
    claims: Values = {}
    table: TableName
    row: Values = {}
    given: tuple[Given, ...] = ()
    change: Literal["insert", "select", "delete", "truncate"] | Update
    expect: Expectation
    stacks: tuple[str, ...] = Field((), description="The stacks it is about; all when empty.")
    line: int = 0

    @property
    def command(self) -> str:
        return "update" if isinstance(self.change, Update) else self.change

    def __str__(self) -> str:
        return self.name or f"{self.command} on {self.table} as {self.as_.value}"


def read_cases(path: Path) -> list[Case]:
    """The cases of a file. Raises CaseFileError with the line of the first fault."""
    try:
        document = yaml.compose(path.read_text(), yaml.SafeLoader)
    except OSError as unreadable:
        raise CaseFileError(f"{path}: cannot be read ({unreadable.strerror}); name another with --cases") from None
    except yaml.YAMLError as broken:
        mark = getattr(broken, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise CaseFileError(f"{path}{line}: is not YAML: {getattr(broken, 'problem', broken)}; correct it") from None
    if document is None:
        return []
    return list(_cases(path, document))


def _cases(path: Path, document: yaml.Node) -> Iterator[Case]:
    common: tuple[Given, ...] = ()
    listed = document
    if isinstance(document, yaml.MappingNode):
        parts = {key.value: (key, value) for key, value in document.value}
        for name, (key, _) in parts.items():
            if name not in ("given", "cases"):
                raise _fault(path, key, f"{name!r} is not known here; a file has `given` and `cases`")
        if "cases" not in parts:
            raise _fault(path, document, "has no `cases`; list them")
        if "given" in parts:
            common = tuple(_validated(path, parts["given"][1], TypeAdapter(list[Given])))
        listed = parts["cases"][1]
    if not isinstance(listed, yaml.SequenceNode):
        raise _fault(path, listed, f"is not a list of cases; write them like\n- {FORM}")
    for node in listed.value:
        case = _validated(path, node, TypeAdapter(Case))
        if case.expect.allowed is None and case.expect.receives is None:
            raise _fault(path, node, "expects nothing; write `expect: {allowed: …}` or `expect: {receives: …}`")
        if case.expect.receives is not None and case.command in ("select", "truncate"):
            raise _fault(
                path, node, f"expects to receive a {case.command}, of which Realtime sends no event; leave it out"
            )
        yield case.model_copy(update={"line": node.start_mark.line + 1, "given": (*common, *case.given)})


def _validated(path: Path, node: yaml.Node, model: TypeAdapter[ModelT]) -> ModelT:
    loader = yaml.SafeLoader("")
    try:
        return model.validate_python(loader.construct_document(node))
    except ValidationError as invalid:
        error = invalid.errors()[0]
        place, keys = _place(node, error["loc"])
        what = error["msg"].removeprefix("Value error, ")
        where = ".".join((*keys, *(str(key) for key in error["loc"][-1:] if error["type"] == "missing")))
        raise _fault(path, place, f"{where or 'the case'}: {what}; a case is written like\n{FORM}") from None
    finally:
        loader.dispose()


def _place(node: yaml.Node, location: Sequence[int | str]) -> tuple[yaml.Node, list[str]]:
    """The node that an error of pydantic is about, or the nearest around it, and the keys that lead there."""
    keys = []
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = [value for key, value in node.value if key.value == part]
            if found:
                node = found[0]
                keys.append(str(part))
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
            keys.append(str(part))
    return node, keys


def _fault(path: Path, node: yaml.Node, message: str) -> CaseFileError:
    return CaseFileError(f"{path}:{node.start_mark.line + 1}: {message}")
