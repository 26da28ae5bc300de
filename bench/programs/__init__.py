"""Pulumi programs to measure, each run as the ``__main__.py`` of a project of its own."""
