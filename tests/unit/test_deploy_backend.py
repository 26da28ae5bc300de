"""Whose backend is used, and which passphrase."""

import json
from pathlib import Path

import pytest

from deploy.backend import choose, docker_host
from deploy.errors import DeployError


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home" / ".pulumi").mkdir(parents=True)
    return tmp_path / "home"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "Pulumi.yaml").write_text("name: supabase-realtime\n")
    return folder


def log_in(home: Path, current: str) -> None:
    (home / ".pulumi" / "credentials.json").write_text(json.dumps({"current": current}))


def test_without_a_login_the_state_is_kept_inside_the_project(project: Path, home: Path) -> None:
    backend = choose(project, "dev", {"HOME": str(home)})
    assert backend.environ["PULUMI_BACKEND_URL"] == backend.url == (project / ".pulumi/state").as_uri()
    assert (project / ".pulumi/state").is_dir(), "the engine refuses a file backend without its folder"


def test_the_users_own_backend_wins_in_the_engines_order(project: Path, home: Path) -> None:
    token = {"HOME": str(home), "PULUMI_ACCESS_TOKEN": "pul-1"}
    assert choose(project, "dev", token).url == "https://api.pulumi.com"
    log_in(home, "file://~")
    assert choose(project, "dev", token).url == "file://~"
    (project / "Pulumi.yaml").write_text("name: supabase-realtime\nbackend:\n  url: gs://ours\n")
    assert choose(project, "dev", token).url == "gs://ours"
    backend = choose(project, "dev", {**token, "PULUMI_BACKEND_URL": "s3://mine"})
    assert backend.url == "s3://mine"
    assert "PULUMI_BACKEND_URL" not in backend.environ
    assert not (project / ".pulumi").exists()


def test_after_pulumi_logout_the_state_is_kept_inside_the_project(project: Path, home: Path) -> None:
    log_in(home, "")
    assert choose(project, "dev", {"HOME": str(home)}).url.startswith("file://")


def test_a_login_whose_credentials_are_encrypted_counts_as_one(project: Path, home: Path) -> None:
    (home / ".pulumi" / "credentials.json").write_bytes(b"\x00sealed")
    assert "PULUMI_BACKEND_URL" not in choose(project, "dev", {"HOME": str(home)}).environ


def test_a_moved_pulumi_home_is_where_the_login_is_looked_for(project: Path, home: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "credentials.json").write_text('{"current": "https://mine"}')
    assert choose(project, "dev", {"HOME": str(home), "PULUMI_HOME": str(moved)}).url == "https://mine"
    assert choose(project, "dev", {"HOME": str(home), "PULUMI_CREDENTIALS_PATH": str(moved)}).url == "https://mine"


def test_stack_dev_needs_no_passphrase(project: Path, home: Path) -> None:
    assert choose(project, "dev", {"HOME": str(home)}).environ["PULUMI_CONFIG_PASSPHRASE"] == "development"


@pytest.mark.parametrize(
    "environ", [{"PULUMI_CONFIG_PASSPHRASE": ""}, {"PULUMI_CONFIG_PASSPHRASE_FILE": "/run/secrets/passphrase"}]
)
def test_a_passphrase_of_the_users_own_is_left_alone(project: Path, home: Path, environ: dict[str, str]) -> None:
    for stack in ("dev", "prod"):
        assert "PULUMI_CONFIG_PASSPHRASE" not in choose(project, stack, {"HOME": str(home), **environ}).environ


def test_another_stack_without_a_passphrase_is_refused_in_one_line(project: Path, home: Path) -> None:
    with pytest.raises(DeployError) as refused:
        choose(project, "prod", {"HOME": str(home)})
    assert refused.value.faults == (
        "stack prod has no passphrase for its secrets; set PULUMI_CONFIG_PASSPHRASE_FILE "
        "(or PULUMI_CONFIG_PASSPHRASE), or name another `secretsprovider` in Pulumi.prod.yaml",
    )


@pytest.mark.parametrize(
    ("stack_file", "url", "needed"),
    [
        ("secretsprovider: awskms://alias/mine\n", "file://~", False),
        ("secretsprovider: passphrase\n", "https://api.pulumi.com", True),
        ("encryptionsalt: v1:abc\n", "https://api.pulumi.com", True),
        ("config: {}\n", "https://api.pulumi.com", False),
        ("config: {}\n", "s3://mine", True),
    ],
)
def test_a_passphrase_is_asked_for_only_where_the_engine_would(
    project: Path, home: Path, stack_file: str, url: str, needed: bool
) -> None:
    (project / "Pulumi.prod.yaml").write_text(stack_file)
    environ = {"HOME": str(home), "PULUMI_BACKEND_URL": url}
    if needed:
        with pytest.raises(DeployError, match="PULUMI_CONFIG_PASSPHRASE"):
            choose(project, "prod", environ)
    else:
        assert choose(project, "prod", environ).url == url


def test_a_broken_stack_file_is_named(project: Path, home: Path) -> None:
    (project / "Pulumi.prod.yaml").write_text("config: [\n")
    with pytest.raises(DeployError, match=r"Pulumi\.prod\.yaml is not YAML: .*; correct it"):
        choose(project, "prod", {"HOME": str(home)})


@pytest.mark.parametrize(
    ("url", "folder"),
    [
        ("file:///var/state", "/var/state"),
        ("file:///var/my%20state?no_tmp_dir=true", "/var/my state"),
        ("file://./state", "{project}/state"),
        ("file://~", "{HOME}"),
    ],
)
def test_the_files_of_a_file_backend_are_where_the_engine_keeps_them(
    project: Path, home: Path, monkeypatch: pytest.MonkeyPatch, url: str, folder: str
) -> None:
    monkeypatch.setenv("HOME", str(home))
    backend = choose(project, "dev", {"HOME": str(home), "PULUMI_BACKEND_URL": url})
    assert backend.directory(project) == Path(folder.format(project=project, HOME=home)) / ".pulumi"


def test_a_service_has_no_files(project: Path, home: Path) -> None:
    backend = choose(project, "dev", {"HOME": str(home), "PULUMI_BACKEND_URL": "https://api.pulumi.com"})
    assert backend.directory(project) is None


# --- which Docker engine


@pytest.mark.parametrize(
    ("stack_file", "project_file", "host"),
    [
        (
            "config:\n  docker:host: tcp://10.0.0.1:2375\n",
            "config:\n  docker:host: tcp://10.0.0.2:2375\n",
            "tcp://10.0.0.1:2375",
        ),
        ("config: {}\n", "config:\n  docker:host:\n    value: tcp://10.0.0.2:2375\n", "tcp://10.0.0.2:2375"),
        ("encryptionsalt: v1\n", "name: supabase-realtime\n", None),
    ],
    ids=["the stack's own", "the project's", "none"],
)
def test_the_docker_engine_is_the_one_that_the_docker_provider_uses(
    stack_file: str, project_file: str, host: str | None, project: Path
) -> None:
    (project / "Pulumi.dev.yaml").write_text(stack_file)
    (project / "Pulumi.yaml").write_text(project_file)
    assert docker_host(project, "dev") == host


def test_an_encrypted_address_of_the_docker_engine_is_refused_with_the_cure(project: Path) -> None:
    (project / "Pulumi.dev.yaml").write_text("config:\n  docker:host:\n    secure: v1:abc\n")
    with pytest.raises(DeployError, match=r"docker:host: is encrypted and no secret; `pulumi config set --plaintext"):
        docker_host(project, "dev")
