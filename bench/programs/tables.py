"""The database objects of the stack alone, for as many tables as the config says, on a server that is up.

The tables are declared by the program, as by any that imports the component: `tables` in the config reaches the
program as an environment variable, which Linux limits to 128 KiB.
"""

import gc
import os

import pulumi
import pulumi_docker as docker
from pulumi.runtime import config

import settings
from components.database import RealtimeDatabase
from settings import SUBSCRIBING_ROLES, Table

gc.freeze()

stack_settings = settings.load(
    {**config.get_config_env(), **config.CONFIG.get()}, stack=pulumi.get_stack(), environ=os.environ
)
tables = [
    # The short form, which stands for four policies: one a command.
    Table.model_validate({"table": f"public.table_{number:03}", "read": SUBSCRIBING_ROLES, "write": SUBSCRIBING_ROLES})
    for number in range(pulumi.Config("bench").require_int("tables"))
]
# What the objects wait for and are deleted with; the server that holds them is not this program's.
volume = docker.Volume("volume", name=stack_settings.name)
RealtimeDatabase(
    stack_settings.name,
    settings=stack_settings.postgres,
    tables=tables,
    migrations=None,
    server=volume,
    data=volume,
)
