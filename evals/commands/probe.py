"""`sail probe`: what features know, measured by heads that are fitted on them."""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evals.datasets.labelled import LabelledImages
from evals.datasets.loading import load_dataset
from evals.datasets.made import MADE
from evals.datasets.splits import Splits, split_each_seed
from evals.datasets.stored import label_features
from evals.features import (
    ImageFeatures,
    extract_features,
    open_features,
    require_grids,
    with_baselines,
)
from evals.options import BACKBONE_OPTIONS, CropOptions, default_probes, parse_probes, refuse_unread
from evals.report import check_reports
from sail_encoder.backbones.registry import announce, check_features, choose_backbone, resolve_features
from sail_encoder.backbones.spec import FeatureSpec, VectorPooling
from sail_encoder.io.devices import check_device
from sail_encoder.io.refusals import check_writable

if TYPE_CHECKING:
    from evals.probing import ChooseOn, ProbeRun
    from evals.report import Facts
    from evals.results import Result
    from heads.probe import Probe


def probe(
    data: str,
    out: str,
    model: str = "sail-tiny",
    weights: str | None = None,
    random_weights: bool = False,
    max_tiles: int | None = None,
    msac: bool = False,
    project: bool = False,
    probes: str | dict[str, dict[str, Any] | None] | None = None,
    layers: str = "-1",
    norm: bool = True,
    fuse: Literal["concat", "mean"] = "concat",
    pool: VectorPooling = "mean",
    resize: str = "auto",
    max_tokens: int | None = None,
    exif_rotate: bool = False,
    store_dtype: Literal["float16", "float32"] = "float16",
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device: str = "auto",
    labels: str | None = None,
    label_column: str | None = None,
    task: Literal["classification", "multilabel", "regression"] = "classification",
    val_share: float = 0.1,
    test_share: float = 0.2,
    choose_on: Literal["validation", "test"] = "validation",
    seeds: int = 1,
    baselines: bool | None = None,
    online: bool = False,
    crop: int | None = None,
    test_resize: int | None = None,
    workers: int | None = None,
    plots: bool = True,
    latex: bool = False,
) -> int:
    """Fits probes on features of labelled images, and reports what they reach.

    Features are extracted into a folder under --out and used again; results are kept one by one. Killed or stopped, the
    same command goes on where it was.

    Args:
        data: digits, scenes (also scenes-color, scenes-shapes, scenes-position), a folder of images in folders of
            classes (below train, val and test where there are these), ImageNet-1k, a table (.csv, .tsv, .parquet),
            tar shards, a Hugging Face dataset on disk, or what sail extract has left.
        out: Folder for features, heads, results.json, results.csv, results.md and plots.
        model: sail-tiny, a folder, a Hub name such as ByteDance-Seed/SAIL-7B, timm/NAME, or hf/NAME.
        weights: For a timm model, a file or folder of weights in place of its published ones.
        random_weights: Whether to leave the weights random; they are the same every time.
        max_tiles: For SAIL-VL, tiles per image at most; by default what the checkpoint says.
        msac: For SAIL-VL, whether to see images under a second grid of tiles too; features are the mean of both.
        project: For SAIL-VL, whether to take the features that its language model receives.
        probes: Names separated by commas; in a file also their settings, such as {knn: {k: [20]}, linear:
            {warmup: 0.1}}, where warmup is a share of the steps. By default all that fit the data: linear, logistic
            (not for regression), ridge, knn and attentive.
        layers: Blocks to take features from: -1, 0,11,23, all, last4 or even4.
        norm: Whether to apply the model's final norm.
        fuse: What to do with several layers: one after the other (concat), or their mean.
        pool: What becomes the vector that all probes but attentive see: mean, max or generalized mean (gem) of the
            patches, the class token (cls), or that followed by the mean (cls_mean), as DINOv2 and DINOv3 have it.
        resize: The model's own rule (auto), native, short512 (the shorter side), a side such as 224, or 448x672.
        max_tokens: Patches of an image at most under the native rule.
        exif_rotate: Whether to turn photographs upright as their EXIF orientation says.
        store_dtype: Type in which features are stored.
        precision: Precision of the backbone; auto is bfloat16 on a GPU and float32 on a CPU.
        device: auto (a GPU where there is one), cpu, cuda:1, ...
        labels: For ImageNet its devkit or a list of synsets; for features a table with the labels of the images. Other
            data have labels of their own.
        label_column: Column of the labels in tables and shards; several, separated by commas, for regression.
        task: Kind of the labels in tables and shards; several labels of one image are written cat|dog.
        val_share: Share of the training set to choose hyper-parameters on, where the data has no validation set.
        test_share: Share to test on, where the data has no test set.
        choose_on: Where hyper-parameters are chosen. On test, as DINOv2 and DINOv3 report their linear probes, the
            result is a little too good.
        seeds: How many times to run, each with another validation set and other random numbers.
        baselines: Whether to report raw pixels and the same network with random weights too; by default only for
            digits and scenes.
        online: Whether to train on augmented images (random crops and flips) with the backbone in the loop: only linear
            and attentive. Runs on several GPUs under torchrun or accelerate: torchrun --nproc-per-node 8 -m sail_cli.
        crop: Side of the crops in pixels, only with --online; 224 by default.
        test_resize: Shorter side that images are brought to before their center is cropped for testing, only with
            --online; by default 256/224 of the crop, which is 256.
        workers: Processes that read images for each GPU, only with --online; 8 by default, 0 for none.
        plots: Whether to draw hyper-parameter paths and confusion matrices.
        latex: Whether to write the tables as results.tex too.

    Returns:
        Exit status: 0 done, 1 done although some images could not be read, 130 or 143 stopped by a signal.
    """
    asked = dict(locals())
    folder, stored = Path(out), (Path(data) / "index.parquet").exists()
    refuse_unread(probe, asked, stored)
    check_device(device)
    check_features(layers, resize, max_tokens)
    check_writable(folder)
    check_reports(folder, "probe", others="sweep.json")
    named = None if probes is None else parse_probes(probes)
    features = open_features(data, fuse, pool) if stored else None
    dataset = (
        label_features(features.folder, labels, label_column, task)
        if features
        else load_dataset(data, labels, label_column, task)
    )
    grids = features is None or features.has_grids
    chosen = named or parse_probes(default_probes(dataset.task, grids, online))
    splits = split_each_seed(dataset, val_share, test_share, seeds)
    if features is None:
        _, wanted = resolve_features(model, layers, resize, max_tokens, **_asked_of_features(asked))
    else:
        wanted = features.spec
    announce("torch" if stored else model)
    from evals.probe_report import describe_probing
    from evals.probing import ProbeRun, check_probes
    from evals.results import ResultLog

    built = check_probes(chosen, dataset, splits, device, choose_on)
    _check_use(built, online, features)
    if online:
        crops = CropOptions.of(crop, workers, test_resize)
        results, seen = _train_online(folder, dataset, wanted, device, crops, choose_on, chosen, splits)
        mode = f"online, augmented crops of {crops.side} pixels, tested at {crops.test_resize} before the center crop"
    else:
        compared = with_baselines(wanted) if baselines or (baselines is None and data in MADE) else [wanted]
        sources = [features] if features else _extract(dataset, compared, device, folder / "features", built)
        with ResultLog(folder) as log:
            run = ProbeRun(log, folder, dataset, choose_on, device)
            results, seen = _run_all(run, chosen, sources, splits)
        mode = f"features that were extracted once{f', from {data}' if stored else ''}"
    if len(wanted.layers) > 1:
        mode += f", {len(wanted.layers)} layers joined by {fuse}"
    if results:
        _report(folder, results, asked, describe_probing(dataset, splits, seen, built, mode, choose_on))
    return int(any(result.left_out for result in results))


def _asked_of_features(asked: dict[str, Any]) -> dict[str, Any]:
    """Options of the command that are fields of a `FeatureSpec`."""
    names = ("norm", "exif_rotate", "fuse", "pool", "precision", "store_dtype")
    fields = {name: asked[name] for name in names}
    return fields | choose_backbone(*(asked[name] for name in BACKBONE_OPTIONS))


def _check_use(probes: "list[Probe]", online: bool, stored: ImageFeatures | None) -> None:
    """Makes sure that the probes can see what they will be given."""
    from evals.probing import check_stepwise

    for probe in probes:
        if online:
            check_stepwise(probe)
        elif stored and probe.takes == "grids":
            require_grids(stored, probe.kind)


def _extract(
    dataset: LabelledImages, wanted: list[FeatureSpec], device: str, cache: Path, probes: "list[Probe]"
) -> Iterator[ImageFeatures]:
    """Features for these probes; each are extracted when it is their turn."""
    grids = any(probe.takes == "grids" for probe in probes)
    for features in wanted:
        yield extract_features(dataset, features, device, cache, grids)


def _run_all(
    run: "ProbeRun", probes: dict[str, dict[str, Any]], sources: Iterable[ImageFeatures], splits: list[Splits]
) -> "tuple[list[Result], list[FeatureSpec]]":
    """All probes on all features, and what these are."""
    results, seen = [], []
    for source in sources:
        seen.append(source.spec)
        results += _run_probes(run, probes, source, splits)
    return results, seen


def _run_probes(
    run: "ProbeRun", probes: dict[str, dict[str, Any]], features: ImageFeatures, splits: list[Splits]
) -> "list[Result]":
    """All probes with all seeds on one set of features."""
    from tqdm import tqdm

    todo = [(name, seed) for name in probes for seed in range(len(splits))]
    bar = tqdm(todo, features.title, unit="probe", disable=None)
    results = [run.run(name, probes[name], features, splits[seed], seed) for name, seed in bar]
    if results[0].left_out:
        reasons = features.folder.folder / "failures.csv"
        _tell_left_out(results[0].left_out, f"; {reasons} says why")
    return results


def _train_online(
    out: Path,
    dataset: LabelledImages,
    features: FeatureSpec,
    device: str,
    crops: CropOptions,
    choose_on: "ChooseOn",
    probes: dict[str, dict[str, Any]],
    splits: list[Splits],
) -> "tuple[list[Result], list[FeatureSpec]]":
    """Trains with the backbone in the loop; all processes take part, and only the first one has results to report."""
    from evals.online import OnlineRun
    from heads.processes import Processes

    with Processes.join() as processes, OnlineRun(out, dataset, features, device, crops, choose_on, processes) as run:
        results = [run.run(name, probes[name], one, seed) for name in probes for seed, one in enumerate(splits)]
    if processes.rank:
        return [], []
    left_out = max(result.left_out for result in results)
    if left_out:
        _tell_left_out(left_out)
    precision = str(run.backbone.dtype).removeprefix("torch.")
    return results, [replace(run.features, precision=precision, store_dtype=precision)]


def _tell_left_out(count: int, why: str = "") -> None:
    print(f"{count:,} images could not be read and were left out{why}", file=sys.stderr)


def _report(out: Path, results: "list[Result]", asked: dict[str, Any], facts: "Facts") -> None:
    """Writes everything, and prints the table that counts."""
    from evals.plots import can_plot, plot_results
    from evals.probe_report import write_report

    print(write_report(out, results, asked, facts, asked["latex"]))
    if asked["plots"] and can_plot():
        plot_results(out, results)
    print(f"all metrics are in {out / 'results.md'}", file=sys.stderr)
