"""The least that a program pays for the stack's three providers: one resource of each."""

import pulumi
import pulumi_docker as docker
import pulumi_postgresql as postgresql

from bench.programs.empty_resource import EmptyResource

docker.Volume("volume", name=f"{pulumi.get_project()}-{pulumi.get_stack()}")
postgresql.Provider("postgresql", host="127.0.0.1", username="nobody", password="none", sslmode="disable")  # noqa: S106
EmptyResource("empty")
