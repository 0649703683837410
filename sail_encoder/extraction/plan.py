"""What a run is to do: the images, the backbone, what is asked of each image, and what it will write."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sail_encoder.backbones.spec import BackboneSpec
from sail_encoder.commands.estimate import feature_bytes, look_at_some
from sail_encoder.images.resizing import Resize
from sail_encoder.images.sources import ImageList
from sail_encoder.io.errors import StoreError
from sail_encoder.io.refusals import nearest_existing
from sail_encoder.io.units import format_bytes
from sail_encoder.store.index import list_todo
from sail_encoder.store.shares import Share

Pooling = Literal["none", "mean", "max"]


@dataclass(frozen=True)
class Request:
    """What is asked of each image.

    Attributes:
        layers: Block indices.
        norm: Whether the final norm is applied.
        pool: How patches are pooled, `none` for the whole grid.
        dtype: `float16` or `float32`, as stored.
        resize: How images are brought to size.
        exif_rotate: Whether EXIF orientation is applied.
    """

    layers: tuple[int, ...]
    norm: bool
    pool: Pooling
    dtype: Literal["float16", "float32"]
    resize: Resize
    exif_rotate: bool


@dataclass(frozen=True)
class Plan:
    """A resolved request.

    Attributes:
        listing: All images, of all shards.
        spec: What the backbone is.
        request: What is asked of each image.
        precision: Precision of weights and computation; `auto` as long as the device is not known.

    Raises:
        UserError: If the backbone's patches do not tile the size that is asked for.
    """

    listing: ImageList
    spec: BackboneSpec
    request: Request
    precision: str

    def __post_init__(self) -> None:
        if self.request.resize.fixed is not None:
            self.request.resize.grid(self.request.resize.fixed, self.spec.patch_size)

    @property
    def depth(self) -> int:
        """Blocks that have to be computed."""
        return max(self.request.layers) + 1

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides what is stored, as far as it is known, but for the weights themselves."""
        request = self.request
        settings = {
            "root": self.listing.root,
            "layers": list(request.layers),
            "norm": request.norm,
            "pool": request.pool,
            "dtype": request.dtype,
            "resize": str(request.resize),
            "max_tokens": request.resize.max_tokens,
            "exif_rotate": request.exif_rotate,
        }
        return settings if self.precision == "auto" else {**settings, "precision": self.precision}

    @property
    def options(self) -> dict[str, Any]:
        """The options of `sail extract` that ask for the same of the same images."""
        settings = {name: value for name, value in self.settings.items() if name != "root"}
        return {**settings, "model": self.spec.name, "layers": ",".join(map(str, self.request.layers))}


def forecast(plan: Plan, part: Share, folder: Path, overwrite: bool) -> str:
    """Says what is to be done.

    Raises:
        StoreError: If the disk cannot hold it.
    """
    images = part.of(plan.listing.images)
    todo = images if overwrite else list_todo(folder, images)
    sample = look_at_some(todo, plan.request.resize, plan.spec.patch_size)
    positions = sample.tokens if plan.request.pool == "none" else 1
    each = feature_bytes(positions, plan.spec.embed_dim, len(plan.request.layers), plan.request.dtype)
    needed, free = each * len(todo), shutil.disk_usage(nearest_existing(folder)).free
    text = (
        f"{len(todo):,} of {len(images):,} images to do, about {sample.tokens:,.0f} patches each, "
        f"with {plan.spec.name}; "
        f"{format_bytes(needed)} to write, {format_bytes(free)} free in {folder}{sample.note}"
    )
    if needed > free:
        raise StoreError(f"{text}; free some space, or use --pool mean, fewer --layers or --dtype float16")
    return text
