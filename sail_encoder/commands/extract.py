"""`sail extract`: features of any number of images as .npy files."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

from sail_encoder.backbones.registry import announce, choose_backbone, load_for, resolve_features
from sail_encoder.backbones.spec import Pooling
from sail_encoder.extraction.plan import Plan, forecast
from sail_encoder.extraction.progress import Progress
from sail_encoder.extraction.ray import check_devices, connect, extract_on_ray
from sail_encoder.extraction.run import run_plan
from sail_encoder.extraction.workers import extract_on_each
from sail_encoder.images.sources import list_images
from sail_encoder.io.devices import choose_dtype, list_devices, split_devices
from sail_encoder.io.errors import UserError, require_positive
from sail_encoder.io.refusals import check_writable
from sail_encoder.io.remote import is_remote
from sail_encoder.io.runs import check_settings
from sail_encoder.store.remote import RemoteFolder, check_remote
from sail_encoder.store.shares import Share
from sail_encoder.store.store import has_run, remove_run


def extract(
    source: list[str],
    out: str,
    model: str = "sail-tiny",
    weights: str | None = None,
    random_weights: bool = False,
    max_tiles: int | None = None,
    msac: bool = False,
    project: bool = False,
    layers: str = "-1",
    norm: bool = True,
    pool: Pooling = "none",
    store_dtype: Literal["float16", "float32"] = "float16",
    resize: str = "auto",
    max_tokens: int | None = None,
    exif_rotate: bool = False,
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    devices: str = "auto",
    token_budget: int | Literal["auto"] = "auto",
    readers: int | Literal["auto"] = "auto",
    shard: str = "0/1",
    engine: Literal["local", "ray"] = "local",
    overwrite: bool = False,
    dry_run: bool = False,
) -> int:
    """Extracts features of images to .npy files.

    Killed or stopped, the same command goes on where it was; run again when there are more images, it does these.

    Args:
        source: Image files, folders, globs, lists (.txt, .csv, .tsv, .parquet) or .tar shards.
        out: Folder for features, index.parquet, failures.csv and run.json; with a pool also one elsewhere, such as
            s3://bucket/features.
        model: sail-tiny, a folder, a Hub name such as ByteDance-Seed/SAIL-7B, timm/NAME, hf/NAME (a vision model of
            transformers, by its name on the Hub or its folder), or raw/14 for raw patches.
        weights: For a timm model, a file or folder of weights in place of its published ones.
        random_weights: Whether to leave the weights random, as a baseline; they are the same every time.
        max_tiles: For SAIL-VL, tiles per image at most; by default what the checkpoint says.
        msac: For SAIL-VL, whether to see images under a second grid of tiles too; features are the mean of both.
        project: For SAIL-VL, whether to take the features that its language model receives.
        layers: Blocks to take features from: -1, 0,11,23, all, last4 or even4.
        norm: Whether to apply the model's final norm; without it the raw residual stream is stored.
        pool: Whether to store the grid of patches (none), or one vector per image: mean, max or generalized mean (gem)
            of the patches, the class token (cls), or that followed by the mean (cls_mean).
        store_dtype: Type of the stored values; an image whose features do not fit float16 is recorded as failed.
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
        engine: local runs on the devices of this machine; ray on all GPUs of a Ray cluster whose machines share the
            folders of images and features.
        overwrite: Whether to delete an earlier run in the folder first.
        dry_run: Whether to say what would be done, and do nothing.

    Returns:
        Exit status: 0 done, 1 done with failures recorded, 130 or 143 stopped by a signal.

    Raises:
        UserError: If something that is asked for is not possible, or the disk fills up on the way.
    """
    arguments = dict(locals())
    if is_remote(out):
        check_remote(out, pool, shard)
        remote = RemoteFolder(out)
        return remote.run(lambda folder: extract(**{**arguments, "out": str(folder)}), copy=not dry_run)
    if not source:
        raise UserError("nothing to extract from; name files, folders, globs, lists or .tar shards")
    folder, part = Path(out), Share.parse(shard)
    limits = _read_limits(token_budget=token_budget, readers=readers)
    split_devices(devices)
    if engine == "ray":
        check_devices(devices)
    check_writable(folder)
    listing = list_images(source)
    for note in listing.notes():
        print(note, file=sys.stderr)
    asked = {"norm": norm, "pool": pool, "exif_rotate": exif_rotate, "precision": precision, "store_dtype": store_dtype}
    asked |= choose_backbone(weights, random_weights, max_tiles, msac, project)
    plan = Plan(listing, *resolve_features(model, layers, resize, max_tokens, **asked))
    _check_folder(folder, plan, part, overwrite)
    cluster = connect() if engine == "ray" else None
    announce(model)
    chosen = [cluster.device] if cluster else list_devices(devices)
    # Which precision `auto` is, the device has decided.
    decided = str(choose_dtype(precision, chosen[0])).removeprefix("torch.")
    plan = replace(plan, features=replace(plan.features, precision=decided))
    _check_folder(folder, plan, part, overwrite)
    print(forecast(plan, part, folder, overwrite), file=sys.stdout if dry_run else sys.stderr)
    if dry_run:
        return 0
    if cluster or len(chosen) > 1:
        images = part.of(plan.listing.images)
        if overwrite:
            remove_run(folder)
        arguments = {
            "source": list(source),
            "out": out,
            **plan.options,
            "token_budget": token_budget,
            "readers": readers,
        }
        if cluster:
            return extract_on_ray(cluster, part, arguments, images, folder)
        return extract_on_each(chosen, part, arguments, images, folder)
    backbone = load_for(plan.features, chosen[0])
    if overwrite:
        remove_run(folder)
    return _conclude(folder, *run_plan(backbone, plan, folder, part, **limits))


def _read_limits(**asked: int | Literal["auto"]) -> dict[str, int | None]:
    """Numbers that were asked for, None in place of auto."""
    limits = {name: None if value == "auto" else value for name, value in asked.items()}
    for name, limit in limits.items():
        if limit is not None:
            require_positive(name, limit)
    return limits


def _check_folder(folder: Path, plan: Plan, part: Share, overwrite: bool) -> None:
    """Refuses a folder that the plan does not fit, before any work."""
    if not overwrite:
        check_settings(folder, plan.settings)
        return
    if part.count > 1:
        raise UserError(
            f"--overwrite true with --shard {part} would delete what the other shards have written; delete {folder} "
            "once, then start every shard without --overwrite"
        )
    has_run(folder)


def _conclude(folder: Path, status: int, progress: Progress, totals: dict[str, int] | None) -> int:
    """Prints what is there now, warns of what a user may not expect, and returns the exit status."""
    new = progress.done
    if totals is None:
        print(f"stopped; {new:,} images are safe in {folder}, the same command goes on", file=sys.stderr)
        return status
    rate = progress.report()["images_per_second"]
    print(f"{totals['done']:,} images in {folder}, {new:,} of them new at {rate:,.3g} images/s")
    if totals["turned"]:
        print(
            f"{totals['turned']:,} photographs carry an EXIF rotation that was not applied; see --exif_rotate",
            file=sys.stderr,
        )
    if totals["pending_elsewhere"]:
        print(
            f"{totals['pending_elsewhere']:,} images are still to do by other shards; index.parquet lists them",
            file=sys.stderr,
        )
    if totals["failed"]:
        print(f"{totals['failed']:,} images failed; {folder / 'failures.csv'} says why", file=sys.stderr)
    return 1 if totals["failed"] else 0
