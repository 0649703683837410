"""`sail extract`: features of any number of images as .npy files."""

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sail_encoder.errors import StoreError, UserError
from sail_encoder.estimate import feature_bytes, format_bytes, mean_tokens
from sail_encoder.extraction.progress import Progress, describe_machine
from sail_encoder.images import ImageFile, ImageList, list_images
from sail_encoder.interrupt import Interrupt
from sail_encoder.store.journal import read_journals
from sail_encoder.store.store import FeatureStore, Shard, check_settings

if TYPE_CHECKING:
    import torch

    from sail_encoder.backbone import VisionBackbone
    from sail_encoder.extraction.pipeline import Request
    from sail_encoder.spec import BackboneSpec


def extract(
    source: list[str],
    out: str,
    model: str = "sail-tiny",
    layers: str = "-1",
    norm: bool = True,
    pool: Literal["none", "mean", "max"] = "none",
    dtype: Literal["float16", "float32"] = "float16",
    resize: str = "auto",
    max_tokens: int | None = None,
    exif_rotate: bool = False,
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    devices: str = "auto",
    token_budget: int | Literal["auto"] = "auto",
    readers: int | Literal["auto"] = "auto",
    shard: str = "0/1",
    overwrite: bool = False,
    dry_run: bool = False,
) -> int:
    """Extracts features of images to .npy files.

    Killed or stopped, the same command goes on where it was; run again when there are more images, it does these.

    Args:
        source: Image files, folders, globs, lists (.txt, .csv, .tsv, .parquet) or .tar shards.
        out: Folder for features, index.parquet, failures.csv and run.json.
        model: sail-tiny, a folder, a Hub name such as ByteDance-Seed/SAIL-7B, timm/NAME, or raw/14 for raw patches.
        layers: Blocks to take features from: -1, 0,11,23, all, last4 or even4.
        norm: Whether to apply the model's final norm; without it the raw residual stream is stored.
        pool: Whether to store the grid of patches (none), or one vector an image (mean, max).
        dtype: Type of the stored values; an image whose features do not fit float16 is recorded as failed.
        resize: The model's own rule (auto), native (keep size and aspect), short512 (the shorter side), a side such as
            224, or 448x672.
        max_tokens: Patches of an image at most under the native rule; by default the model's own, 4096 for SAIL-7B.
        exif_rotate: Whether to turn photographs upright as their EXIF orientation says. Off by default, because the
            published models were trained and data sets are annotated in stored pixels.
        precision: Precision of weights and computation; auto is bfloat16 on a GPU and float32 on a CPU.
        devices: auto (all GPUs, or the CPU), or devices separated by commas, such as cuda:0,cuda:1.
        token_budget: Patches in one forward pass; auto is what memory allows. It is halved when memory runs out.
        readers: Threads that read images; auto is one for each core, 16 at most.
        shard: Which part of the images to do, i/n with i from 0 to n-1, to share a run among machines.
        overwrite: Whether to delete an earlier run in the folder first.
        dry_run: Whether to say what would be done, and do nothing.

    Returns:
        Exit status: 0 done, 1 done with failures recorded, 130 or 143 stopped by a signal.
    """
    arguments = dict(locals())
    from sail_encoder.devices import list_devices

    chosen = list_devices(devices)
    plan = _make_plan(arguments, chosen[0])
    part = Shard.parse(shard)
    folder = Path(out)
    if not overwrite:
        check_settings(folder, plan.settings)
    forecast = _forecast(plan, part.of(plan.listing.images), folder, overwrite)
    print(forecast, file=sys.stdout if dry_run else sys.stderr)
    if dry_run:
        return 0
    if len(chosen) == 1:
        return _extract_on(chosen[0], plan, part, folder, token_budget, readers, overwrite)
    from sail_encoder.extraction.multi_device import extract_on_each

    return extract_on_each(chosen, part, arguments)


@dataclass(frozen=True)
class Plan:
    """A resolved request.

    Attributes:
        listing: All images, of all shards.
        spec: What the backbone is.
        request: What is asked of each image.
        precision: Precision of weights and computation.
    """

    listing: ImageList
    spec: "BackboneSpec"
    request: "Request"
    precision: str

    @property
    def depth(self) -> int:
        """Blocks that have to be computed."""
        return max(self.request.layers) + 1

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides what is stored, but for the weights themselves."""
        request = self.request
        return {
            "root": self.listing.root,
            "layers": list(request.layers),
            "norm": request.norm,
            "pool": request.pool,
            "dtype": request.dtype,
            "resize": str(request.resize),
            "max_tokens": request.resize.max_tokens,
            "exif_rotate": request.exif_rotate,
            "precision": self.precision,
        }


def _make_plan(arguments: dict[str, Any], device: "torch.device") -> Plan:
    from sail_encoder.devices import choose_dtype
    from sail_encoder.extraction.pipeline import Request
    from sail_encoder.layers import resolve_layers
    from sail_encoder.spec import describe

    if not arguments["source"]:
        raise UserError("nothing to extract from; name files, folders, globs, lists or .tar shards")
    spec = describe(arguments["model"])
    rule = spec.resize.override(arguments["resize"], arguments["max_tokens"])
    if rule.fixed is not None:
        rule.grid(rule.fixed, spec.patch_size)
    request = Request(
        layers=tuple(resolve_layers(arguments["layers"], spec.num_layers)),
        norm=arguments["norm"],
        pool=arguments["pool"],
        dtype=arguments["dtype"],
        resize=rule,
        exif_rotate=arguments["exif_rotate"],
    )
    precision = str(choose_dtype(arguments["precision"], device)).removeprefix("torch.")
    return Plan(list_images(arguments["source"]), spec, request, precision)


def _forecast(plan: Plan, images: Sequence[ImageFile], folder: Path, overwrite: bool) -> str:
    """Says what is to be done, and refuses where the disk cannot hold it."""
    known = set() if overwrite else {record.key for pack in read_journals(folder) for record in pack if record.file}
    todo = [image for image in images if image.key not in known]
    tokens = mean_tokens(todo, plan.request.resize, plan.spec.patch_size)
    positions = tokens if plan.request.pool == "none" else 1
    each = feature_bytes(positions, plan.spec.embed_dim, len(plan.request.layers), plan.request.dtype)
    needed, free = each * len(todo), shutil.disk_usage(_existing(folder)).free
    text = (
        f"{len(todo):,} of {len(images):,} images to do, about {tokens:,.0f} patches each, with {plan.spec.name}; "
        f"{format_bytes(needed)} to write, {format_bytes(free)} free in {folder}"
    )
    if needed > free:
        raise StoreError(f"{text}; free some space, or use --pool mean, fewer --layers or --dtype float16")
    return text


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return folder if folder.exists() else _existing(folder.parent)


def _extract_on(
    device: "torch.device",
    plan: Plan,
    part: Shard,
    folder: Path,
    token_budget: int | Literal["auto"],
    readers: int | Literal["auto"],
    overwrite: bool,
) -> int:
    """Runs one shard on one device."""
    from sail_encoder.backbone import load_backbone

    backbone = load_backbone(plan.spec.name, str(device), plan.precision, plan.depth)
    store, progress, status = run_plan(backbone, plan, folder, part, token_budget, readers, overwrite)
    if status:
        print(f"stopped; {progress.done:,} images are safe in {folder}, the same command goes on", file=sys.stderr)
        return status
    return _conclude(store, part.of(plan.listing.images), progress, folder)


def run_plan(
    backbone: "VisionBackbone",
    plan: Plan,
    folder: Path,
    part: Shard,
    token_budget: int | Literal["auto"] = "auto",
    readers: int | Literal["auto"] = "auto",
    overwrite: bool = False,
) -> tuple[FeatureStore, Progress, int]:
    """Extracts what a folder does not have yet.

    Returns:
        The store, the progress that was made, and 0, or 130 or 143 where a signal has stopped it.
    """
    from sail_encoder.extraction.pipeline import Pipeline

    settings = {**plan.settings, "weights": backbone.fingerprint(plan.depth - 1)}
    store = FeatureStore(folder, settings, plan.request.pool != "none", plan.request.dtype, part, overwrite)
    stretches = store.missing(part.of(plan.listing.images))
    budget = backbone.default_token_budget() if token_budget == "auto" else token_budget
    threads = min(16, os.cpu_count() or 1) if readers == "auto" else readers
    progress = Progress(sum(map(len, stretches)), f"{backbone.device}")
    pipeline = Pipeline(backbone, store, plan.request, budget, threads, progress.add)
    with progress, Interrupt(pipeline.stop.set) as interrupt:
        pipeline.run(stretches)
    if interrupt.status:
        store.suspend()
        return store, progress, interrupt.status
    run = {"shard": str(part), "device": str(backbone.device), "token_budget": pipeline.token_budget}
    machine = describe_machine(backbone.device)
    store.finish(plan.listing.images, {"model": plan.spec.name, **run, **progress.report(), **machine})
    return store, progress, 0


def _conclude(store: FeatureStore, images: Sequence[ImageFile], progress: Progress, folder: Path) -> int:
    """Prints what is there now, and warns of what a user may not expect."""
    records = [store.records[image.key] for image in images]
    failed = sum(record.error is not None for record in records)
    turned = sum(record.exif_orientation != 1 for record in records)
    rate = progress.report()["images_per_second"]
    print(f"{len(records) - failed:,} images in {folder}, {progress.done:,} of them new at {rate:,.3g} images/s")
    if turned:
        print(f"{turned:,} photographs carry an EXIF rotation that was not applied; see --exif_rotate", file=sys.stderr)
    if failed:
        print(f"{failed:,} images failed; {folder / 'failures.csv'} says why", file=sys.stderr)
    return 1 if failed else 0
