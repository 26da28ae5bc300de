"""Which entries of a dump a restore takes: the application's, whoever made the dump."""

import pytest

from deploy.archive import Entry, parse, selected

LISTING = """;
; Archive created at 2026-11-23 22:14:00 UTC
;     dbname: postgres
;     Format: CUSTOM
;     Dumped from database version: 15.8 (Ubuntu 15.8-1)
;     Dumped by pg_dump version: 15.8
;
;
; Selected TOC Entries:
;
14; 2615 16500 SCHEMA - auth supabase_auth_admin
15; 2615 2200 SCHEMA - public pg_database_owner
16; 2615 16501 SCHEMA - realtime supabase_admin
17; 0 0 ACL - SCHEMA realtime supabase_admin
18; 0 0 COMMENT - SCHEMA public pg_database_owner
19; 2615 16501 SCHEMA - extensions postgres
2; 3079 16389 EXTENSION - pg_stat_statements
3579; 0 0 COMMENT - EXTENSION pg_stat_statements
215; 1259 16386 TABLE public my wells supabase_admin
3581; 0 0 TABLE DATA public my wells supabase_admin
216; 1259 16390 TABLE realtime messages supabase_admin
3600; 3256 16700 POLICY realtime messages owners listen supabase_admin
3601; 3256 16701 POLICY public wells wells_select supabase_admin
3602; 0 16701 ROW SECURITY realtime messages supabase_admin
1700; 826 16400 DEFAULT ACL public DEFAULT PRIVILEGES FOR TABLES supabase_admin
1701; 826 16401 DEFAULT ACL realtime DEFAULT PRIVILEGES FOR TABLES supabase_admin
3700; 6104 16402 PUBLICATION - supabase_realtime supabase_admin
3701; 6106 16403 PUBLICATION TABLE public supabase_realtime wells supabase_admin
3702; 6100 16404 SUBSCRIPTION - from_elsewhere supabase_admin
3703; 3466 16405 EVENT TRIGGER - pgrst_ddl_watch supabase_admin
3704; 3466 16406 EVENT TRIGGER - application_watch supabase_admin
"""
KEPT = {"realtime", "_realtime", "extensions"}


@pytest.fixture
def taken() -> list[str]:
    return [
        entry.line.split(" ", 3)[3] for entry in selected(parse(LISTING), kept=KEPT, event_triggers={"pgrst_ddl_watch"})
    ]


def test_the_applications_entries_are_restored_in_their_order(taken: list[str]) -> None:
    assert taken == [
        "SCHEMA - auth supabase_auth_admin",
        "SCHEMA - public pg_database_owner",
        "COMMENT - SCHEMA public pg_database_owner",
        "EXTENSION - pg_stat_statements",
        "COMMENT - EXTENSION pg_stat_statements",
        "TABLE public my wells supabase_admin",
        "TABLE DATA public my wells supabase_admin",
        # Of Realtime's tables, what the application adds to them.
        "POLICY realtime messages owners listen supabase_admin",
        "POLICY public wells wells_select supabase_admin",
        "DEFAULT ACL public DEFAULT PRIVILEGES FOR TABLES supabase_admin",
        "EVENT TRIGGER - application_watch supabase_admin",
    ]


def test_the_contents_name_the_tables_with_rows_and_the_postgres_they_came_from() -> None:
    contents = parse(LISTING)
    assert contents.tables == ("public.my wells",)
    assert (contents.server, contents.server_major) == ("15.8 (Ubuntu 15.8-1)", 15)


def test_what_is_no_list_is_refused() -> None:
    with pytest.raises(ValueError, match="does not say which Postgres was dumped"):
        parse("pg_restore: something else")


def test_an_entry_about_a_schema_concerns_it() -> None:
    assert Entry(line="", kind="ACL", schema="-", rest="SCHEMA app owner").concerns == "app"
    assert Entry(line="", kind="EXTENSION", schema="-", rest="citext").concerns == "-"
