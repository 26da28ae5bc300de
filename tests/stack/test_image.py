"""An image from a registry is pinned by its digest; the registry is a small one of this test's own."""

from __future__ import annotations

import hashlib
import io
import json
import secrets
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import docker
import pytest

from providers.image import PinnedImageProvider

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
LAYER = "application/vnd.docker.image.rootfs.diff.tar"


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


class Registry:
    """What a Docker engine asks a registry when it pulls: manifests by tag or digest, and blobs."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.tags: dict[str, str] = {}
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.rpartition("/")[2]
                content = b"{}" if self.path == "/v2/" else registry.blobs.get(registry.tags.get(name, name))
                self.send_response(200 if content is not None else 404)
                self.send_header("Content-Type", MANIFEST if "/manifests/" in self.path else "application/octet-stream")
                self.send_header("Content-Length", str(len(content or b"")))
                self.send_header("Docker-Content-Digest", digest(content or b""))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content or b"")

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:
                """Says nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.server_port}"

    def keep(self, content: bytes) -> dict[str, str | int]:
        self.blobs[digest(content)] = content
        return {"digest": digest(content), "size": len(content)}

    def push(self, tag: str) -> str:
        """Put another image under a tag; the digest of its manifest."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            tar.addfile(tarfile.TarInfo(f"file-{secrets.token_hex(4)}"))
        layer = packed.getvalue()
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [digest(layer)]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, **self.keep(json.dumps(config).encode())},
            "layers": [{"mediaType": LAYER, **self.keep(layer)}],
        }
        self.tags[tag] = str(self.keep(json.dumps(manifest).encode())["digest"])
        return self.tags[tag]


@pytest.fixture
def registry() -> Iterator[Registry]:
    """A registry on loopback, which a Docker engine on this machine asks without TLS. Its images go with it."""
    opened = Registry()
    yield opened
    opened.server.shutdown()
    opened.server.server_close()
    engine = docker.from_env()
    for made in engine.images.list():
        if any(name.startswith(opened.address) for name in (*made.tags, *(made.attrs["RepoDigests"] or ()))):
            engine.images.remove(made.id, force=True)


def test_a_pulled_image_is_pinned_by_digest_until_its_tag_is_pulled_anew(registry: Registry) -> None:
    first = registry.push("v1.0.0")
    image = f"{registry.address}/app:v1.0.0"
    declared = {"image": image, "data_volume": "", "reference": image, "moved_to": ""}
    provider = PinnedImageProvider()

    pinned = provider.create(declared).outs
    assert pinned is not None
    assert pinned["reference"] == f"{image}@{first}"
    engine = docker.from_env()
    assert engine.images.get(pinned["reference"]).id == engine.images.get(image).id

    second = registry.push("v1.0.0")
    here = provider.read(image, pinned)
    assert here.outs is not None
    assert not provider.diff(image, here.outs, declared).changes, "the engine has the same image still"

    engine.images.pull(image)
    moved = provider.read(image, pinned)
    assert moved.outs is not None
    assert moved.outs["moved_to"] == f"{image}@{second}"
    assert provider.diff(image, moved.outs, declared).changes

    engine.images.remove(image)
    updated = provider.update(image, moved.outs, declared).outs
    assert updated == {"image": image, "data_volume": "", "reference": f"{image}@{second}", "moved_to": ""}
    assert engine.images.get(updated["reference"]), "pulled, since the engine had none of the name"
