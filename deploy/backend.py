"""Where the state is kept and what encrypts its secrets: the user's choice if there is one, else inside the project."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

from deploy.errors import DeployError
from settings import DEVELOPMENT_STACK

STATE = Path(".pulumi", "state")
"""The file backend inside the project, for users who are logged in nowhere."""

DEVELOPMENT_PASSPHRASE = "development"  # noqa: S105 - public by intent: it guards only the well-known secrets of stack dev
PASSPHRASES = ("PULUMI_CONFIG_PASSPHRASE", "PULUMI_CONFIG_PASSPHRASE_FILE")
CLOUD = "https://api.pulumi.com"


@dataclass(frozen=True)
class Backend:
    """A state backend: its URL, and the environment variables that make the engine use it."""

    url: str
    environ: Mapping[str, str]

    def directory(self, project: Path) -> Path | None:
        """The folder in which a file backend keeps everything; None for every other kind of backend."""
        parts = urlsplit(self.url)
        if parts.scheme != "file":
            return None
        return project / Path(unquote(parts.netloc + parts.path)).expanduser() / ".pulumi"


def choose(project: Path, stack: str, environ: Mapping[str, str]) -> Backend:
    """The backend of a stack, and the passphrase that stack dev is allowed to default to.

    Precedence as in the engine (pulumi/pulumi, pkg/workspace/creds.go, GetCurrentCloudURL): PULUMI_BACKEND_URL,
    ``backend.url`` of Pulumi.yaml, the login of ``pulumi login``; then PULUMI_ACCESS_TOKEN, which logs in by itself.
    ``pulumi login`` itself is never touched. Without any of them: ``.pulumi/state`` in the project, made when missing.
    Raises DeployError when a stack other than dev has nothing to encrypt its secrets with.
    """
    added: dict[str, str] = {"PULUMI_SKIP_UPDATE_CHECK": "true"}
    url = chosen_by_user(project, environ)
    if url is None:
        (project / STATE).mkdir(mode=0o700, parents=True, exist_ok=True)
        url = (project / STATE).as_uri()
        added["PULUMI_BACKEND_URL"] = url
    if not any(variable in environ for variable in PASSPHRASES):
        if stack == DEVELOPMENT_STACK:
            added["PULUMI_CONFIG_PASSPHRASE"] = DEVELOPMENT_PASSPHRASE
        elif needs_passphrase(url, stack_file(project, stack)):
            raise DeployError(
                f"stack {stack} has no passphrase for its secrets; set PULUMI_CONFIG_PASSPHRASE_FILE "
                f"(or PULUMI_CONFIG_PASSPHRASE), or name another `secretsprovider` in Pulumi.{stack}.yaml"
            )
    return Backend(url=url, environ=added)


def chosen_by_user(project: Path, environ: Mapping[str, str]) -> str | None:
    """The backend that the user picked, None without one."""
    if url := environ.get("PULUMI_BACKEND_URL"):
        return url
    if url := (document(project / "Pulumi.yaml").get("backend") or {}).get("url"):
        return str(url)
    if url := login(environ):
        return url
    return CLOUD if environ.get("PULUMI_ACCESS_TOKEN") else None


def login(environ: Mapping[str, str]) -> str | None:
    """The backend of ``pulumi login``, from its credentials file; None when logged in nowhere."""
    home = Path(environ.get("PULUMI_HOME") or Path(environ.get("HOME", "~")).expanduser() / ".pulumi")
    credentials = Path(environ.get("PULUMI_CREDENTIALS_PATH") or home) / "credentials.json"
    if not credentials.exists():
        return None
    try:
        stored = json.loads(credentials.read_text())
    except json.JSONDecodeError:
        stored = None
    if not isinstance(stored, dict) or "current" not in stored:
        return CLOUD  # encrypted by PULUMI_CREDENTIAL_STORE: the engine reads it, and only a service has tokens to hide
    return stored["current"] or None


def needs_passphrase(url: str, stack_settings: Mapping[str, Any]) -> bool:
    """Whether the engine will ask for a passphrase, which it does unless a service or a cloud's key encrypts.

    Source: pulumi/pulumi, pkg/cmd/pulumi/stack/secrets.go: ``secretsprovider`` first, then ``encryptionsalt``,
    then the backend's own, which for every backend but the service is the passphrase.
    """
    provider = stack_settings.get("secretsprovider", "default")
    if provider not in ("passphrase", "default", ""):
        return False
    if provider == "passphrase" or "encryptionsalt" in stack_settings:
        return True
    return not url.startswith(("https://", "http://"))


def stack_file(project: Path, stack: str) -> dict[str, Any]:
    """The stack's own settings file, empty when there is none yet."""
    return document(project / f"Pulumi.{stack}.yaml")


def docker_host(project: Path, stack: str) -> str | None:
    """``docker:host`` of the stack's settings file or, as its default, of Pulumi.yaml; None without it.

    Read from the files, so that an engine that does not answer is named before the CLI is asked anything. Raises
    DeployError for one that is encrypted.
    """
    for settings in (stack_file(project, stack), document(project / "Pulumi.yaml")):
        value = (settings.get("config") or {}).get("docker:host")
        if isinstance(value, dict):
            if "secure" in value:
                raise DeployError(
                    "docker:host: is encrypted and no secret; `pulumi config set --plaintext docker:host …`"
                )
            value = value.get("value")
        if value:
            return str(value)
    return None


def document(path: Path) -> dict[str, Any]:
    """A YAML file as a mapping, empty when it does not exist."""
    if not path.exists():
        return {}
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as invalid:
        raise DeployError(f"{path.name} is not YAML: {' '.join(str(invalid).split())}; correct it") from None
    return content if isinstance(content, dict) else {}
