"""The database objects of the stack alone, for the tables in its config, on a server that is up."""

import gc
import os

import pulumi
import pulumi_docker as docker
from pulumi.runtime import config

import settings
from components.database import RealtimeDatabase

gc.freeze()

stack_settings = settings.load(
    {**config.get_config_env(), **config.CONFIG.get()}, stack=pulumi.get_stack(), environ=os.environ
)
RealtimeDatabase(
    stack_settings.name,
    settings=stack_settings.postgres,
    tables=stack_settings.tables,
    migrations=None,
    # What the objects are deleted with; the server that holds them is not this program's.
    volume=docker.Volume("volume", name=stack_settings.name),
)
