"""Features of a data set: extracted into a folder that is used again, or read from one that `sail extract` has made."""

import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evals.datasets.labelled import LabelledImages
from sail_encoder.backbones.registry import load_for
from sail_encoder.backbones.spec import NEED_CLASS_TOKEN, FeatureSpec
from sail_encoder.extraction.plan import Plan, forecast
from sail_encoder.extraction.run import run_plan
from sail_encoder.images.decoding import Array
from sail_encoder.images.resizing import Resize
from sail_encoder.io.devices import choose_device, choose_dtype
from sail_encoder.io.errors import UserError
from sail_encoder.io.fingerprints import digest
from sail_encoder.store.reading import FeatureFolder
from sail_encoder.store.shares import WHOLE

if TYPE_CHECKING:
    from heads.rows import Selection
    from sail_encoder.backbones.base import VisionBackbone


class ImageFeatures:
    """Features of images, by key.

    Args:
        folder: Where they are.
        spec: What is wanted of them: how vectors are pooled from grids, and how several layers are joined; vectors that
            are stored are taken as they are.
        pooled: Where vectors are that no grid tells, as those of class tokens.
    """

    def __init__(self, folder: FeatureFolder, spec: FeatureSpec, pooled: FeatureFolder | None = None) -> None:
        self.folder, self.spec, self.pooled = folder, spec, pooled or folder
        self._rows = _rows_of(folder)
        self._pooled_rows = _rows_of(pooled) if pooled else self._rows
        self._vectors: Array | None = None

    @property
    def title(self) -> str:
        """Name of the backbone in reports."""
        return self.spec.title

    def has(self, key: str) -> bool:
        """Tells whether an image has features."""
        return key in self._rows and key in self._pooled_rows

    @property
    def has_grids(self) -> bool:
        """Tells whether patches were stored."""
        return not self.folder.is_pooled

    def vectors(self, keys: Sequence[str]) -> "Selection":
        """[len(keys), C], read when they are needed."""
        from heads.rows import Selection

        if self._vectors is None:
            pool, folder = self.spec.pool, self.pooled
            self._vectors = self._fuse([folder.matrix(layer, pool) for layer in folder.layers])
        return Selection(self._vectors, np.array([self._pooled_rows[key] for key in keys], np.int64))

    def grids(self, keys: Sequence[str]) -> "Grids":
        """A grid [nh, nw, C] per image, read when it is needed."""
        return Grids(self, [self._rows[key] for key in keys])

    def grid(self, row: int) -> Array:
        """Grid [nh, nw, C] of an image, by its row in the index."""
        entry = self.folder.entries[row]
        return self._fuse([self.folder.read(entry, layer) for layer in self.folder.layers])

    def _fuse(self, layers: list[Array]) -> Array:
        """Joins the channels of several layers."""
        if len(layers) == 1:
            return layers[0]
        return np.concatenate(layers, -1) if self.spec.fuse == "concat" else np.stack(layers).mean(0, dtype=np.float32)

    def source(self, takes: str) -> FeatureSpec:
        """Features as a head that is fitted on them remembers them."""
        stored = self.folder.spec
        pool = "none" if takes == "grids" else self.spec.pool if stored.pool == "none" else stored.pool
        return replace(stored, model=self.spec.model, pool=pool, fuse=self.spec.fuse)


def _rows_of(folder: FeatureFolder) -> dict[str, int]:
    return {entry.path: row for row, entry in enumerate(folder.entries)}


class Grids(Sequence[Array]):
    """Grids of some images, each read from its file when it is asked for."""

    def __init__(self, features: ImageFeatures, rows: Sequence[int]) -> None:
        self._features, self._rows = features, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return self._features.grid(self._rows[index])


def open_features(folder: str, fuse: str, pool: str) -> ImageFeatures:
    """Opens features that `sail extract` has left.

    Raises:
        UserError: If there is no finished run in the folder, or its vectors were pooled in another way.
    """
    stored = FeatureFolder(folder)
    if not stored.is_pooled and pool in NEED_CLASS_TOKEN:
        raise UserError(f"{folder} holds grids, without class tokens; extract with --pool {pool}, or use --pool mean")
    if stored.is_pooled and pool not in ("mean", stored.spec.pool):
        raise UserError(
            f"--pool {pool} has no effect with {folder}, whose vectors are pooled by {stored.spec.pool}; leave it out, "
            "or extract with --pool none"
        )
    return ImageFeatures(stored, replace(stored.spec, fuse=fuse, pool=pool))


def extract_features(
    dataset: LabelledImages,
    wanted: FeatureSpec,
    device: str,
    cache: Path,
    grids: bool,
    backbone: "VisionBackbone | None" = None,
) -> ImageFeatures:
    """Extracts what the cache does not hold.

    The folder of the cache is named after all that decides the features, so that other settings, other weights or
    another data set never meet the same files. Where only vectors are needed, grids that are there are pooled.

    Args:
        dataset: The images.
        wanted: Which features.
        device: Where the backbone runs.
        cache: Folder of all caches.
        grids: Whether patches are needed, or only vectors.
        backbone: The backbone where it is loaded already.

    Raises:
        StoreError: If the disk cannot hold them.
        SystemExit: If a signal has stopped it; the status says which.
    """
    precision = str(choose_dtype(wanted.precision, choose_device(device))).removeprefix("torch.")
    wanted = replace(wanted, precision=precision)
    backbone = backbone or load_for(wanted, device)
    wanted = replace(wanted, weights=backbone.fingerprint(wanted.depth - 1))
    needs_token = wanted.pool in NEED_CLASS_TOKEN
    vectors = None
    if needs_token or not grids:
        pools = [wanted.pool] if needs_token else [wanted.pool, "none"]
        vectors = _extract_pooled(dataset, backbone, wanted, cache, pools)
    if vectors and not grids:
        return ImageFeatures(vectors, wanted)
    return ImageFeatures(_extract_pooled(dataset, backbone, wanted, cache, ["none"]), wanted, vectors)


def _extract_pooled(
    dataset: LabelledImages, backbone: "VisionBackbone", wanted: FeatureSpec, cache: Path, pools: Sequence[str]
) -> FeatureFolder:
    """Features that are pooled in one of these ways: the first that is there already, or else the first."""
    plans = [Plan(dataset.images, backbone.spec, replace(wanted, pool=pool, fuse="concat")) for pool in pools]
    folders = [cache / f"{slug(wanted.title)}-{digest([plan.settings, dataset.name], 10)}" for plan in plans]
    plan, folder = _first_finished(list(zip(plans, folders, strict=True)))
    return extract_missing(backbone, plan, folder)


def extract_missing(backbone: "VisionBackbone", plan: Plan, folder: Path) -> FeatureFolder:
    """Features of a plan, of which those that are not in the folder yet are extracted.

    Raises:
        StoreError: If the disk cannot hold them.
        SystemExit: If a signal has stopped it; the status says which.
    """
    print(forecast(plan, WHOLE, folder, overwrite=False), file=sys.stderr)
    status, progress, _ = run_plan(backbone, plan, folder)
    if status:
        print(f"stopped; {progress.done:,} images are safe, the same command goes on", file=sys.stderr)
        raise SystemExit(status)
    return FeatureFolder(folder)


def _first_finished(choices: Sequence[tuple[Plan, Path]]) -> tuple[Plan, Path]:
    """The first plan whose folder is finished, or the first of all."""
    return next((choice for choice in choices if (choice[1] / "index.parquet").exists()), choices[0])


def with_baselines(wanted: FeatureSpec) -> list[FeatureSpec]:
    """Raw pixels, the same network with random weights, and the network itself.

    Raw pixels are a single patch as large as the image, brought to 16x16.
    """
    pixels = FeatureSpec("raw/16", (0,), False, "mean", wanted.fuse, Resize((16, 16)))
    pixels = replace(pixels, exif_rotate=wanted.exif_rotate, precision=wanted.precision, store_dtype=wanted.store_dtype)
    untrained = replace(wanted, pretrained=False, options={})
    return [pixels, untrained, wanted] if wanted.pretrained else [pixels, wanted]


def slug(title: str) -> str:
    """Turns a title into a name for files."""
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
