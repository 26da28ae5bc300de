"""An image, pinned to what its tag named when it was first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, ReadResult, Resource, UpdateResult

from providers.docker_engine import DockerProvider, docker_client
from providers.postgres_major import major_fault

if TYPE_CHECKING:
    import docker


PULL_SECONDS = 600
"""How long the engine may be silent while it pulls and unpacks."""


class ImageError(Exception):
    """Why an image cannot be used, and what to do about it."""


def reference(image: str, attributes: dict[str, Any]) -> str:
    """What names this very image for ever: the tag with the digest it was pulled by; of a local image, its id.

    With the tag, which the engine passes over beside a digest, because a person reads it in ``docker ps``.
    """
    name = image.partition("@")[0]
    repository = name.rpartition(":")[0] if ":" in name.rpartition("/")[2] else name
    for digest in attributes.get("RepoDigests") or ():
        known, _, hashed = str(digest).partition("@")
        if known in (repository, f"docker.io/{repository}", f"docker.io/library/{repository}"):
            return f"{name}@{hashed}"
    return str(attributes["Id"])


def still_names(pinned: str, attributes: dict[str, Any]) -> bool:
    """Whether an image is the one that a reference was taken of. One image may have several digests."""
    digests = {str(digest).partition("@")[2] for digest in attributes.get("RepoDigests") or ()}
    return pinned == attributes["Id"] or pinned.partition("@")[2] in digests


def _attributes(client: docker.DockerClient, image: str) -> dict[str, Any] | None:
    """What the engine has under this name; None when it has nothing."""
    from docker.errors import ImageNotFound  # noqa: PLC0415

    try:
        return dict(client.images.get(image).attrs)
    except ImageNotFound:
        return None


def _pinned(props: dict[str, Any]) -> dict[str, Any]:
    image, volume = props["image"], props["data_volume"]
    with docker_client(PULL_SECONDS) as client:
        attributes = _attributes(client, image)
        if attributes is None:
            client.images.pull(image)
            attributes = dict(client.images.get(image).attrs)
        if volume and (fault := major_fault(client, image=image, volume=volume)):
            raise ImageError(fault)
    return {"image": image, "data_volume": volume, "reference": reference(image, attributes), "moved_to": ""}


class PinnedImageProvider(DockerProvider):
    def create(self, props: dict[str, Any]) -> CreateResult:
        return CreateResult(id_=props["image"], outs=_pinned(props))

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """An image that is gone from the engine is no drift: its container runs, or pulls it again."""
        with docker_client(PULL_SECONDS) as client:
            attributes = _attributes(client, props["image"])
        kept = attributes is None or still_names(props["reference"], attributes)
        outs = {**props, "moved_to": "" if kept or attributes is None else reference(props["image"], attributes)}
        return ReadResult(id_=id_, outs=outs, inputs=outs)

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Says at preview already that an image cannot read the data."""
        changed = _olds.get("image") != _news["image"] or bool(_olds.get("moved_to"))
        volume = _news["data_volume"]
        if changed and volume and volume == _olds.get("data_volume"):
            with docker_client(PULL_SECONDS) as client:
                known = _attributes(client, _news["image"]) is not None
                if known and (fault := major_fault(client, image=_news["image"], volume=volume)):
                    raise ImageError(fault)
        return DiffResult(changes=changed)

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        return UpdateResult(outs=_pinned(_news))

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Leaves the image: other stacks of this engine may use it."""


class PinnedImage(Resource, module="index", name="PinnedImage"):
    """An image of this engine, pulled when it has none of the name, and kept to what the name meant then.

    ``reference`` is what a container is to be made of. A tag that names another image since is drift, and the next
    update goes over to that. ``data_volume`` is the volume whose data a Postgres image must be able to read: raises
    ImageError, at preview already, when its major version is another.
    """

    reference: pulumi.Output[str]

    def __init__(
        self,
        name: str,
        *,
        image: str,
        data_volume: pulumi.Input[str] = "",
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__(
            PinnedImageProvider(),
            name,
            {"image": image, "data_volume": data_volume, "reference": image, "moved_to": ""},
            opts,
        )
