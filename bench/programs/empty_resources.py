"""As many empty dynamic resources as the config says."""

import gc

import pulumi

from bench.programs.empty_resource import EmptyResource

gc.freeze()

for number in range(pulumi.Config().require_int("resources")):
    EmptyResource(f"empty-{number}")
