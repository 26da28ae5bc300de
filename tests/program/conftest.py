"""One run of the program for each of the project's stack files."""

from __future__ import annotations

import pytest

from tests.program.recorder import Program, run_program, stack_file, with_secrets

STACKS = ("dev", "staging", "prod")


@pytest.fixture(scope="session", params=STACKS)
def stack(request: pytest.FixtureRequest) -> str:
    """The name of a stack; a test that takes it runs once for each."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def programs() -> dict[str, Program]:
    """What the program declares with the project's own stack files."""
    return {stack: run_program(stack, with_secrets(stack_file(stack))) for stack in STACKS}


@pytest.fixture(scope="session")
def program(stack: str, programs: dict[str, Program]) -> Program:
    """What the program declares for one stack."""
    return programs[stack]


@pytest.fixture(scope="session")
def dev(programs: dict[str, Program]) -> Program:
    return programs["dev"]


@pytest.fixture(scope="session")
def staging(programs: dict[str, Program]) -> Program:
    return programs["staging"]


@pytest.fixture(scope="session")
def prod(programs: dict[str, Program]) -> Program:
    return programs["prod"]
