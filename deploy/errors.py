"""The error of this package: what is wrong and what to do, for a person, without a traceback."""

from __future__ import annotations


class DeployError(Exception):
    """Something the user has to mend first: one line each, what it is and the cure."""

    def __init__(self, *faults: str) -> None:
        self.faults = faults
        super().__init__("\n".join(faults))
