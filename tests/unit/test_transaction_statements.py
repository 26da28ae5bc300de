"""Which statements of a migration begin or end a transaction, and which only look like it."""

from __future__ import annotations

import pytest

from providers.transaction_statements import told, transaction_statements


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("BEGIN;\nCREATE TABLE t ();\nCOMMIT;\n", "BEGIN in line 1, COMMIT in line 3"),
        ("begin work; select 1; end", "BEGIN in line 1, END in line 1"),
        ("START TRANSACTION READ WRITE;\r\nCOMMIT AND CHAIN;\r\nROLLBACK", "START TRANSACTION in line 1, COMMIT in "
         "line 2, ROLLBACK in line 3"),
        ("SELECT 1;; ABORT;", "ABORT in line 1"),
        ("/* one /* two; */ three */\n-- BEGIN;\n  COMMIT", "COMMIT in line 3"),
        ("PREPARE TRANSACTION 'later'; COMMIT PREPARED 'later'", "PREPARE TRANSACTION in line 1, COMMIT in line 1"),
        ("ROLLBACK AND CHAIN", "ROLLBACK in line 1"),
        ("CREATE FUNCTION f() RETURNS int LANGUAGE sql\nBEGIN ATOMIC\n SELECT CASE WHEN true THEN 1 END;\nEND;\nCOMMIT",
         "COMMIT in line 5"),
        ("CREATE OR REPLACE PROCEDURE p() BEGIN ATOMIC SELECT 1 AS end; SELECT t.case FROM t; END; COMMIT;",
         "COMMIT in line 1"),
        ("CREATE FUNCTION begin() RETURNS int LANGUAGE sql RETURN 1; COMMIT;", "COMMIT in line 1"),
        ("CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $$ BEGIN END $$;\nCOMMIT;", "COMMIT in line 2"),
        (r"SELECT 'c:\'; COMMIT; SELECT ' '", "COMMIT in line 1"),
        (r"SELECT E'c:\\'; COMMIT", "COMMIT in line 1"),
        ('CREATE TABLE "a;b" (c text DEFAULT \'it\'\'s;\'); COMMIT', "COMMIT in line 1"),
        ("SELECT a$b$; COMMIT; SELECT a$b$", "COMMIT in line 1"),
        ("CREATE TABLE größe$ (); COMMIT", "COMMIT in line 1"),
    ],
)  # fmt: skip
def test_a_statement_that_begins_or_ends_a_transaction_is_found_with_its_line(text: str, found: str) -> None:
    assert told(transaction_statements(text)) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "SAVEPOINT a; ROLLBACK TO a; ROLLBACK WORK TO SAVEPOINT a; ROLLBACK TRANSACTION TO a; RELEASE a",
        "DO $$ BEGIN PERFORM 1; END $$",
        "DO $do$ BEGIN EXECUTE $$;COMMIT;$$; END; $do$ LANGUAGE plpgsql",
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $body$\nBEGIN\n RETURN NEW;\nEND;\n$body$",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 1; SELECT 2; END",
        "CREATE RULE r AS ON INSERT TO t DO ALSO (SELECT 1; COMMIT; SELECT 2)",
        "SELECT ';COMMIT;', \";COMMIT;\", U&'\\003B;COMMIT;', $1 -- ;COMMIT;\n /* ;COMMIT; */",
        r"SELECT E'\';COMMIT;'",
        "SELECT E'a'\n  '\\';COMMIT;'",
        'PREPARE begin AS SELECT 1; CREATE TABLE commit ("end" int); SELECT 1 AS rollback',
        "-- COMMIT;",
        "SELECT 'not closed; COMMIT",
        "DO $$ not closed; COMMIT",
        "/* not closed; COMMIT",
    ],
)
def test_what_only_looks_like_it_is_let_alone(text: str) -> None:
    assert transaction_statements(text) == []
