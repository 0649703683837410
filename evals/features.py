"""Features of a data set: extracted into a folder that is used again, or read from one that `sail extract` has made."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from evals.datasets.labelled import LabelledImages
from heads.contract import FeatureSource
from sail_encoder.backbones.registry import load_backbone, resolve_options
from sail_encoder.extraction.plan import Plan, Request, forecast
from sail_encoder.extraction.run import run_plan
from sail_encoder.images.pixels import Array
from sail_encoder.io.devices import choose_device, choose_dtype
from sail_encoder.io.digests import digest
from sail_encoder.io.errors import UserError
from sail_encoder.store.reading import FeatureFolder
from sail_encoder.store.shares import WHOLE

if TYPE_CHECKING:
    from heads.pooling import Pooling
    from heads.rows import Selection

Fuse = Literal["concat", "mean"]


@dataclass(frozen=True)
class FeatureSettings:
    """Which features are wanted.

    Attributes:
        model: Name of the backbone.
        layers: Which blocks, in text form.
        norm: Whether the final norm is applied.
        fuse: What is done with several layers: one behind the other, or their mean.
        pool: How vectors are pooled from patches.
        resize: The rule of resizing, in text form.
        max_tokens: Patches of an image at most; None for the model's own limit.
        dtype: Type in which features are stored.
        precision: Precision of weights and computation.
        device: Where the backbone runs.
        pretrained: Whether the weights are read, or random.
    """

    model: str = "sail-tiny"
    layers: str = "-1"
    norm: bool = True
    fuse: Fuse = "concat"
    pool: "Pooling" = "mean"
    resize: str = "auto"
    max_tokens: int | None = None
    dtype: Literal["float16", "float32"] = "float16"
    precision: str = "auto"
    device: str = "auto"
    pretrained: bool = True

    @property
    def title(self) -> str:
        """What the backbone is called in reports."""
        if self.model.startswith("raw/"):
            return f"raw pixels, {self.resize}"
        return self.model if self.pretrained else f"{self.model}, random weights"


class ImageFeatures:
    """Features of images, by key.

    Args:
        title: Name of the backbone in reports.
        folder: Where they are.
        backbone: Name of the backbone.
        fuse: What is done with several layers.
        pool: How vectors are pooled from grids; vectors that are stored are taken as they are.
    """

    def __init__(self, title: str, folder: FeatureFolder, backbone: str, fuse: Fuse, pool: "Pooling") -> None:
        self.title = title
        self.folder = folder
        self.backbone = backbone
        self.fuse, self.pool = fuse, pool
        self._rows = {entry.path: row for row, entry in enumerate(folder.entries)}
        self._vectors: Array | None = None

    def has(self, key: str) -> bool:
        """Whether an image has features."""
        return key in self._rows

    @property
    def has_grids(self) -> bool:
        """Whether patches were stored."""
        return not self.folder.is_pooled

    def vectors(self, keys: Sequence[str]) -> "Selection":
        """[len(keys), C], read when they are needed."""
        from heads.rows import Selection

        if self._vectors is None:
            self._vectors = self._pool_all()
        return Selection(self._vectors, np.array([self._rows[key] for key in keys], np.int64))

    def _pool_all(self) -> Array:
        import torch

        from heads.pooling import pool_grid

        if not self.folder.is_pooled:
            grids = map(self.grid, range(len(self.folder.entries)))
            return np.stack([pool_grid(torch.tensor(grid).float(), self.pool).numpy() for grid in grids])
        layers = [self.folder.matrix(layer) for layer in self.folder.layers]
        if len(layers) == 1:
            return layers[0]
        return np.concatenate(layers, 1) if self.fuse == "concat" else np.stack(layers).mean(0, dtype=np.float32)

    def grids(self, keys: Sequence[str]) -> "Grids":
        """A grid [nh, nw, C] an image, read when it is needed."""
        return Grids(self, [self._rows[key] for key in keys])

    def grid(self, row: int) -> Array:
        """The grid [nh, nw, C] of an image, by its row in the index."""
        entry = self.folder.entries[row]
        layers = [self.folder.read(entry, layer) for layer in self.folder.layers]
        if len(layers) == 1:
            return layers[0]
        return np.concatenate(layers, 2) if self.fuse == "concat" else np.stack(layers).mean(0, dtype=np.float32)

    def source(self, takes: str) -> FeatureSource:
        """What a head that is fitted on these is to remember."""
        settings = self.folder.settings
        stored = settings["pool"]
        return FeatureSource(
            backbone=self.backbone,
            weights=settings["weights"],
            layers=tuple(settings["layers"]),
            norm=settings["norm"],
            resize=settings["resize"],
            max_tokens=settings["max_tokens"],
            pool="none" if takes == "grids" else self.pool if stored == "none" else stored,
            fuse=self.fuse,
        )


class Grids(Sequence[Array]):
    """Grids of some images, each read from its file when it is asked for."""

    def __init__(self, features: ImageFeatures, rows: Sequence[int]) -> None:
        self._features, self._rows = features, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return self._features.grid(self._rows[index])


def open_features(folder: str, fuse: Fuse, pool: "Pooling") -> ImageFeatures:
    """Features that `sail extract` has left.

    Raises:
        UserError: If there is no finished run in the folder, or its vectors were pooled in another way.
    """
    stored = FeatureFolder(folder)
    if stored.is_pooled and pool not in ("mean", stored.settings["pool"]):
        raise UserError(
            f"--pool {pool} has no effect with {folder}, whose vectors are pooled by {stored.settings['pool']}; leave "
            "it out, or extract with --pool none"
        )
    return ImageFeatures(stored.model, stored, stored.model, fuse, pool)


def extract_features(dataset: LabelledImages, settings: FeatureSettings, cache: Path, grids: bool) -> ImageFeatures:
    """Extracts what the cache does not hold.

    The folder of the cache is named after all that decides the features, so that other settings, other weights or
    another data set never meet the same files. Where only vectors are needed, grids that are there are pooled.

    Args:
        dataset: The images.
        settings: Which features.
        cache: Folder of all caches.
        grids: Whether patches are needed, or only vectors.

    Raises:
        StoreError: If the disk cannot hold them.
        SystemExit: If a signal has stopped it; the status says which.
    """
    plans = [_plan(dataset, settings, some) for some in ((True,) if grids else (False, True))]
    backbone = load_backbone(
        settings.model, settings.device, settings.precision, plans[0].depth, pretrained=settings.pretrained
    )
    weights = backbone.fingerprint(plans[0].depth - 1)
    folders = [_cache_folder(cache, settings.title, dataset.name, weights, plan) for plan in plans]
    plan, folder = _first_finished(list(zip(plans, folders, strict=True)))
    print(forecast(plan, WHOLE, folder, overwrite=False), file=sys.stderr)
    run = run_plan(backbone, plan, folder)
    if run.status:
        print(f"stopped; {run.progress.done:,} images are safe, the same command goes on", file=sys.stderr)
        raise SystemExit(run.status)
    return ImageFeatures(settings.title, FeatureFolder(folder), settings.model, settings.fuse, settings.pool)


def _cache_folder(cache: Path, title: str, name: str, weights: str, plan: Plan) -> Path:
    """Where the features of a plan are kept."""
    decisive = {**plan.settings, "weights": weights, "name": name}
    return cache / f"{slug(title)}-{digest(decisive, 10)}"


def _first_finished(choices: Sequence[tuple[Plan, Path]]) -> tuple[Plan, Path]:
    """The first plan whose folder is finished, or the first of all."""
    return next((choice for choice in choices if (choice[1] / "index.parquet").exists()), choices[0])


def _plan(dataset: LabelledImages, settings: FeatureSettings, grids: bool) -> Plan:
    spec, layers, rule = resolve_options(settings.model, settings.layers, settings.resize, settings.max_tokens)
    request = Request(
        layers=tuple(layers),
        norm=settings.norm,
        pool="none" if grids or settings.pool == "gem" else settings.pool,
        dtype=settings.dtype,
        resize=rule,
        exif_rotate=False,
    )
    precision = str(choose_dtype(settings.precision, choose_device(settings.device))).removeprefix("torch.")
    return Plan(dataset.images, spec, request, precision)


def with_baselines(settings: FeatureSettings) -> list[FeatureSettings]:
    """Raw pixels, the same network with random weights, and the network itself.

    Raw pixels are a single patch as large as the image, brought to 16x16.
    """
    pixels = replace(settings, model="raw/16", resize="16x16", max_tokens=None, layers="-1", pool="mean")
    return [pixels, replace(settings, pretrained=False), settings]


def slug(title: str) -> str:
    """A name for files."""
    return re.sub(r"[^\w.]+", "-", title).strip("-")


def require_grids(features: ImageFeatures, probe: str) -> None:
    """Makes sure that patches were stored.

    Raises:
        UserError: If they were not.
    """
    if not features.has_grids:
        raise UserError(
            f"{probe} needs grids, but {features.folder.folder} holds pooled vectors; extract with --pool none, or "
            "leave it out of --probes"
        )
