"""What the Docker engine refuses, and that it is gone, in words for a person."""

from __future__ import annotations

import requests
from docker.errors import APIError, DockerException

from deploy.docker_objects import innermost
from deploy.errors import DeployError

DOCKER_ERRORS = (requests.RequestException, DockerException)
"""What the Docker SDK raises. Those of requests, and the SDK's own for an answer, are OSErrors as well: catch these
before that of a file."""


AGAIN = "look whether it runs (`docker info`), then run the same command again"


def docker_words(failed: Exception) -> str:
    """What one of DOCKER_ERRORS says, in a line: the engine's own explanation, or why it gave none."""
    return " ".join(str(failed.explanation or failed if isinstance(failed, APIError) else innermost(failed)).split())


def docker_failure(failed: Exception) -> DeployError:
    """The error for one of DOCKER_ERRORS."""
    if isinstance(failed, APIError):
        return DeployError(f"the Docker engine refused: {docker_words(failed)}; mend that, then run it again")
    return DeployError(f"the Docker engine does not answer any more ({docker_words(failed)}); {AGAIN}")
