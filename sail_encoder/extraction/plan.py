"""Plan of a run: the images, the backbone, the features of each image, and the space that they take."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sail_encoder.backbones.spec import UNKNOWN, BackboneSpec, FeatureSpec
from sail_encoder.extraction.cost import feature_bytes, look_at_some
from sail_encoder.images.sources import ImageList
from sail_encoder.io.errors import StoreError
from sail_encoder.io.files import format_bytes
from sail_encoder.io.refusals import nearest_existing
from sail_encoder.store.index import list_todo
from sail_encoder.store.shares import Share


@dataclass(frozen=True)
class Plan:
    """A resolved request.

    Attributes:
        listing: All images, of all shares.
        spec: What the backbone is.
        features: What is asked of each image.
    """

    listing: ImageList
    spec: BackboneSpec
    features: FeatureSpec

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides what is stored, as far as it is known; a copy of a model by another name is the same."""
        known = {name: value for name, value in self.features.to_json().items() if UNKNOWN.get(name) != value}
        return {"root": self.listing.root, **{name: value for name, value in known.items() if name != "model"}}

    @property
    def options(self) -> dict[str, Any]:
        """The options of `sail extract` that ask for the same of the same images."""
        features = self.features
        return {
            "model": features.model,
            **features.options,
            "random_weights": not features.pretrained,
            "layers": ",".join(map(str, features.layers)),
            "norm": features.norm,
            "pool": features.pool,
            "store_dtype": features.store_dtype,
            "resize": str(features.size),
            "max_tokens": features.size.max_tokens,
            "exif_rotate": features.exif_rotate,
            "precision": features.precision,
        }


def forecast(plan: Plan, part: Share, folder: Path, overwrite: bool) -> str:
    """Says what is to be done.

    Raises:
        StoreError: If the disk cannot hold it.
    """
    images, features = part.of(plan.listing.images), plan.features
    todo = images if overwrite else list_todo(folder, images)
    patches, _, remark = look_at_some(todo, plan.spec, features.size)
    positions = patches if features.pool == "none" else 1
    channels = plan.spec.channels(features.pool, features.class_token)
    needed = feature_bytes(positions, channels, len(features.layers), features.store_dtype) * len(todo)
    free = shutil.disk_usage(nearest_existing(folder)).free
    text = (
        f"{len(todo):,} of {len(images):,} images to do, about {patches:,.0f} patches each, with "
        f"{plan.spec.name}; {format_bytes(needed)} to write, {format_bytes(free)} free in {folder}{remark}"
    )
    if needed > free:
        raise StoreError(f"{text}; free some space, or use --pool mean, fewer --layers or --store-dtype float16")
    return text
