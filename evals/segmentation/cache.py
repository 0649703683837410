"""Grids of all training images, extracted once by the pipeline of `sail extract`, within a disk budget."""

import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from evals.segmentation.pairs import Sample
from sail_encoder.backbones.registry import describe
from sail_encoder.backbones.spec import FeatureSpec
from sail_encoder.commands.extract import extract
from sail_encoder.extraction.cost import feature_bytes, look_at_some
from sail_encoder.images.sources import list_images
from sail_encoder.io.errors import UserError
from sail_encoder.io.files import format_bytes
from sail_encoder.io.fingerprints import digest
from sail_encoder.store.reading import FeatureFolder

_STOPPED = 128
"""Exit statuses from here on mean that a signal came."""


def cache_grids(
    samples: Sequence[Sample], source: FeatureSpec, folder: Path, budget_gb: float, precision: str, device: str
) -> FeatureFolder:
    """Extracts what is missing of the grids of these images.

    What it will need is said, and held against the budget, before anything is computed. Killed, it goes on where it
    was. Grids are stored in float16, a file an image, so that a crop reads no more than its rows.

    Args:
        samples: The images.
        source: Which features.
        folder: Where to keep them, in a folder of their own; other runs on the same features find them there.
        budget_gb: What they may take on disk, in units of 10^9 bytes.
        precision: Precision of weights and computation.
        device: `auto`, or devices as in `sail extract`.

    Raises:
        UserError: If the budget does not hold them.
        SystemExit: If a signal has stopped the extraction.
    """
    images = [str(sample.image) for sample in samples]
    folder /= _name(images, source, precision)
    _check_budget(images, source, folder, budget_gb)
    # What extraction prints at its end is not the result of this command.
    with redirect_stdout(sys.stderr):
        status = extract(
            images,
            str(folder),
            model=source.model,
            **source.options,
            random_weights=not source.pretrained,
            layers=",".join(map(str, source.layers)),
            norm=source.norm,
            resize=str(source.size),
            max_tokens=source.size.max_tokens,
            precision=precision,  # type: ignore[arg-type]
            devices=device,
        )
    if status >= _STOPPED:
        raise SystemExit(status)
    return FeatureFolder(folder)


def _name(images: list[str], source: FeatureSpec, precision: str) -> str:
    """A name for these features of these images."""
    paths = [os.path.abspath(image) for image in images]
    return digest([source.to_json(), precision, paths], 12)


def _check_budget(images: list[str], source: FeatureSpec, folder: Path, budget_gb: float) -> None:
    spec = describe(source.model, **source.options).at(source.layers)
    tokens = look_at_some(list_images(images).images, spec, source.size).patches
    needed = len(images) * feature_bytes(tokens, spec.embed_dim, len(source.layers), "float16")
    text = (
        f"cached features of {len(images):,} images, about {tokens:,.0f} patches of {spec.embed_dim:,} channels in "
        f"{len(source.layers)} layers each, take {format_bytes(needed)} in {folder}"
    )
    if needed > budget_gb * 1e9:
        raise UserError(
            f"{text}, more than the {budget_gb:g} GB of --cache_gb; raise it, use fewer --layers, a smaller --resize, "
            "or --mode online"
        )
    print(f"{text}; the budget is {budget_gb:g} GB", file=sys.stderr)
