"""Where a file of SQL begins and ends transactions by itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

TOKEN = re.compile(
    r"""
      (?P<space> [ \t\n\r\f\v]+ | --[^\n\r]* )
    | (?P<comment> /\* )
      # Such a text may go on in another line, with its backslashes.
    | (?P<escapes> [eE]'(?:[^'\\]|''|\\.)*'? (?:[ \t\f\v]*[\n\r][ \t\n\r\f\v]*'(?:[^'\\]|''|\\.)*')* )
    | (?P<quoted> '[^']*'? | "[^"]*"? )
    | (?P<dollar> \$(?:[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_\x80-\U0010ffff]*)?\$ )
    | (?P<word> [A-Za-z_\x80-\U0010ffff][A-Za-z0-9_$\x80-\U0010ffff]* )
    | (?P<mark> . )
    """,
    re.VERBOSE | re.DOTALL,
)
"""Postgres's lexical rules (src/backend/parser/scan.l), as far as they decide where a statement ends."""
COMMENT_BOUND = re.compile(r"/\*|\*/")
ALONE = {"begin", "commit", "end", "abort", "rollback"}
"""A transaction statement by its first word."""
WITH_TRANSACTION = {"start", "prepare"}
"""By its first word and TRANSACTION after it."""
HEAD = 4
"""As many words of a statement tell what it is: CREATE OR REPLACE FUNCTION."""


@dataclass(frozen=True)
class TransactionStatement:
    """A statement that begins or ends a transaction."""

    line: int
    text: str
    """Its keywords."""

    def __str__(self) -> str:
        return f"{self.text} in line {self.line}"


@dataclass(frozen=True)
class _Token:
    text: str
    """Of a word in lower case; ``'`` for any text in quotes."""
    line: int
    is_word: bool


def transaction_statements(text: str) -> list[TransactionStatement]:
    """The statements of a file that begin or end a transaction, in their order.

    Statements with savepoints alone are none of them, nor is what function bodies, DO blocks, texts and comments hold.
    The texts are read as with standard_conforming_strings on, Postgres's default. Of a file that Postgres cannot
    parse, and so does not begin, the answer may be wrong.
    """
    return [found for statement in _statements(text) if (found := _as_transaction_statement(statement)) is not None]


def told(statements: Sequence[TransactionStatement]) -> str:
    """The statements for a message: BEGIN in line 1, COMMIT in line 9."""
    return ", ".join(map(str, statements))


def _as_transaction_statement(statement: Sequence[_Token]) -> TransactionStatement | None:
    first, second, third = (*(token.text if token.is_word else "" for token in statement[:3]), "", "", "")[:3]
    if first == "rollback" and "to" in (second, third if second in ("work", "transaction") else ""):
        return None
    if first in ALONE:
        return TransactionStatement(statement[0].line, first.upper())
    if first in WITH_TRANSACTION and second == "transaction":
        return TransactionStatement(statement[0].line, f"{first} {second}".upper())
    return None


def _statements(text: str) -> Iterator[list[_Token]]:
    """The first words and marks of each statement.

    A semicolon ends it, but not in parentheses (CREATE RULE) and not in a body from BEGIN ATOMIC to its END, which
    is how psql tells (src/fe_utils/psqlscan.l).
    """
    head: list[_Token] = []
    parentheses = depth = 0
    before = ""
    for token in _tokens(text):
        if token.text == ";" and not parentheses and not depth:
            yield head
            head = []
        elif len(head) < HEAD and token.text != ";":
            head.append(token)
        if token.text in ("(", ")"):
            parentheses = max(0, parentheses + (1 if token.text == "(" else -1))
        elif token.is_word and not parentheses and _may_have_body(head):
            # After these two, keywords are names.
            keyword = token.text if before not in (".", "as") else ""
            if (before, keyword) == ("begin", "atomic") or (depth and keyword == "case"):
                depth += 1
            elif depth and keyword == "end":
                depth -= 1
        before = token.text
    yield head


def _may_have_body(head: Sequence[_Token]) -> bool:
    words = [token.text for token in head]
    return words[:1] == ["create"] and bool({"function", "procedure"} & set(words))


def _tokens(text: str) -> Iterator[_Token]:
    """The words and marks, without comments and with nothing of what is in quotes."""
    position, line = 0, 1
    while (found := TOKEN.match(text, position)) is not None:
        end = found.end()
        match found.lastgroup:
            case "comment":
                end = _end_of_comment(text, position)
            case "dollar":
                closed = text.find(found[0], end)
                end = len(text) if closed < 0 else closed + len(found[0])
                yield _Token("'", line, is_word=False)
            case "escapes" | "quoted":
                yield _Token("'", line, is_word=False)
            case "word":
                yield _Token(found[0].lower(), line, is_word=True)
            case "mark":
                yield _Token(found[0], line, is_word=False)
        line += len(re.findall(r"\r\n|\r|\n", text[position:end]))
        position = end


def _end_of_comment(text: str, start: int) -> int:
    """Comments may hold comments."""
    depth = 0
    for bound in COMMENT_BOUND.finditer(text, start):
        depth += 1 if bound[0] == "/*" else -1
        if not depth:
            return bound.end()
    return len(text)
