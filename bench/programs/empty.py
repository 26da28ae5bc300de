"""A program that declares nothing."""

import pulumi  # noqa: F401 - the import is what it costs
