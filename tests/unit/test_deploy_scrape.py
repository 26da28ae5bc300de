"""What Prometheus is told about a stack, and the file with its token."""

import stat
from pathlib import Path

import jwt
import pytest
import yaml

from deploy.errors import DeployError
from deploy.generated import generate
from deploy.scrape import rendered, scrape_config, write_token
from settings import NAMESPACE, Settings, load, secret_keys


def stack(**changes: object) -> Settings:
    config: dict[str, object] = {f"{NAMESPACE}:{key}": generate(key) for key in secret_keys()}
    config |= {f"{NAMESPACE}:{key.replace('__', '.')}": value for key, value in changes.items()}
    return load(config, stack="prod", environ={})


def test_every_figure_is_scraped_from_loopback_with_the_stacks_name(tmp_path: Path) -> None:
    settings = stack(gateway__host="0.0.0.0", gateway__status_port=8100)
    document = yaml.safe_load(
        rendered(scrape_config(settings, token_file=tmp_path / "token", exporter="127.0.0.1:9187"))
    )
    assert document["scrape_configs"] == [
        {
            "job_name": "realtime",
            "authorization": {"type": "Bearer", "credentials_file": str(tmp_path / "token")},
            "static_configs": [{"targets": ["127.0.0.1:4001"], "labels": {"stack": "prod"}}],
        },
        {
            "job_name": "postgres",
            "static_configs": [{"targets": ["127.0.0.1:9187"], "labels": {"stack": "prod"}}],
        },
        {
            "job_name": "gateway",
            "static_configs": [{"targets": ["127.0.0.1:8100"], "labels": {"stack": "prod"}}],
        },
    ]


def test_a_gateway_that_publishes_no_figures_is_not_scraped(tmp_path: Path) -> None:
    document = scrape_config(stack(), token_file=tmp_path / "token", exporter="127.0.0.1:9187")
    assert [job["job_name"] for job in document["scrape_configs"]] == ["realtime", "postgres"]


def test_the_token_opens_realtimes_metrics_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    settings = stack()
    token_file = tmp_path / "new" / "token"
    for _ in range(2):
        write_token(settings, token_file)
    secret = settings.realtime.metrics_jwt_secret.get_secret_value()
    assert jwt.decode(token_file.read_text(), secret, algorithms=["HS256"])
    assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
    assert list(token_file.parent.iterdir()) == [token_file]
    assert secret not in rendered(scrape_config(settings, token_file=token_file, exporter="127.0.0.1:9187"))


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DeployError, match=r"file/token cannot be written \(.*\); name another with --token-file"):
        write_token(stack(), tmp_path / "file" / "token")
