"""`sail probe`: what features know, told by heads that are fitted on them."""

import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from evals.datasets.labelled import LabelledImages
    from evals.datasets.splits import Splits
    from evals.features import FeatureSettings, ImageFeatures
    from evals.probing import ProbeRun, Result

ALL = "linear,logistic,ridge,knn,attentive"


def probe(
    data: str,
    out: str,
    model: str = "sail-tiny",
    probes: str | dict[str, dict[str, Any] | None] = ALL,
    layers: str = "-1",
    norm: bool = True,
    fuse: Literal["concat", "mean"] = "concat",
    pool: Literal["mean", "max", "gem"] = "mean",
    resize: str = "auto",
    max_tokens: int | None = None,
    dtype: Literal["float16", "float32"] = "float16",
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
    crop: int = 224,
    workers: int = 8,
    plots: bool = True,
) -> int:
    """Fits probes on features of labelled images, and reports what they reach.

    Features are extracted into a folder under --out and used again; results are kept one by one. Killed or stopped, the
    same command goes on where it was.

    Args:
        data: digits, scenes (also scenes-color, scenes-shapes, scenes-position), a folder of images in folders of
            classes (below train, val and test where there are these), ImageNet-1k, a table (.csv, .tsv, .parquet),
            tar shards, a Hugging Face dataset on disk, or what sail extract has left.
        out: Folder for features, heads, results.json, results.csv, results.md and plots.
        model: sail-tiny, a folder, a Hub name such as ByteDance-Seed/SAIL-7B, or timm/NAME.
        probes: Names separated by commas; in a file also their settings, such as {knn: {k: [20]}, ridge: {}}.
        layers: Blocks to take features from: -1, 0,11,23, all, last4 or even4.
        norm: Whether to apply the model's final norm.
        fuse: What to do with several layers: one behind the other (concat), or their mean.
        pool: How patches become the vector that all probes but attentive see: mean, max, or generalized mean (gem).
        resize: The model's own rule (auto), native, short512 (the shorter side), a side such as 224, or 448x672.
        max_tokens: Patches of an image at most under the native rule.
        dtype: Type in which features are stored.
        precision: Precision of the backbone; auto is bfloat16 on a GPU and float32 on a CPU.
        device: auto (a GPU where there is one), cpu, cuda:1, ...
        labels: For ImageNet its devkit or a list of synsets; for features a table with the labels of the images.
        label_column: Column of the labels in tables and shards; several, separated by commas, for regression.
        task: Kind of the labels in tables and shards; several labels of one image are written cat|dog.
        val_share: Share of the training set to choose hyper-parameters on, where the data has no validation set.
        test_share: Share to test on, where the data has no test set.
        choose_on: Where hyper-parameters are chosen. On test, as DINOv2 and DINOv3 report their linear probes, the
            result is a little too good.
        seeds: How many times to run, each with another validation set and other random numbers.
        baselines: Whether to report raw pixels and the same network with random weights too; by default for digits and
            scenes alone.
        online: Whether to train on augmented images (random crops and flips) with the backbone in the loop: linear and
            attentive alone. Runs on several GPUs under torchrun or accelerate: torchrun --nproc-per-node 8 -m sail_cli.
        crop: Side of the crops in pixels, with --online alone.
        workers: Processes that read images for each GPU, with --online alone; 0 reads in the process itself.
        plots: Whether to draw hyper-parameter paths and confusion matrices.

    Returns:
        Exit status: 0 done, 1 done although some images could not be read.
    """
    arguments = dict(locals())
    from evals.probing import ProbeRun, check_probes, parse_probes

    chosen = parse_probes(probes)
    dataset, stored = _load(arguments)
    splits = _split(dataset, val_share, test_share, seeds)
    grids = check_probes(chosen, dataset, splits, device)
    if online:
        return _probe_online(arguments, chosen, dataset, splits, stored is not None)
    sources = [stored] if stored else _extract(dataset, arguments, grids)
    results: list[Result] = []
    with ProbeRun(Path(out), dataset, choose_on, device) as run:
        for features in sources:
            results += _run_probes(run, chosen, features, splits)
    _report(Path(out), results, arguments)
    return int(any(result.left_out for result in results))


def _probe_online(
    arguments: dict[str, Any],
    probes: dict[str, dict[str, Any]],
    dataset: "LabelledImages",
    splits: "list[Splits]",
    stored: bool,
) -> int:
    """Trains with the backbone in the loop; all processes take part, and the first one reports."""
    from evals.errors import DatasetError
    from evals.online import OnlineRun

    if stored:
        raise DatasetError(f"{arguments['data']} holds features, but --online needs the images; name these")
    names = ("crop", "choose_on", "workers")
    run = OnlineRun(Path(arguments["out"]), dataset, _settings(arguments), **{name: arguments[name] for name in names})
    results = [run.run(name, options, one, seed) for name, options in probes.items() for seed, one in enumerate(splits)]
    if run.processes.rank == 0:
        _report(Path(arguments["out"]), results, arguments)
    run.processes.leave()
    return int(any(result.left_out for result in results))


def _settings(arguments: dict[str, Any]) -> "FeatureSettings":
    from evals.features import FeatureSettings

    names = [field.name for field in fields(FeatureSettings) if field.name in arguments]
    return FeatureSettings(**{name: arguments[name] for name in names})


def _load(arguments: dict[str, Any]) -> "tuple[LabelledImages, ImageFeatures | None]":
    """The data set, and its features where these are what was given."""
    from evals.datasets.loading import load_dataset
    from evals.datasets.stored import label_features
    from evals.features import open_features

    labels, column, task = arguments["labels"], arguments["label_column"], arguments["task"]
    if not (Path(arguments["data"]) / "index.parquet").exists():
        return load_dataset(arguments["data"], labels, column, task), None
    features = open_features(arguments["data"], arguments["fuse"], arguments["pool"])
    return label_features(features.folder, labels, column, task), features


def _split(dataset: "LabelledImages", val_share: float, test_share: float, seeds: int) -> "list[Splits]":
    """The splits of each seed; warns where images are on both sides."""
    from evals.datasets.splits import split, warn_of_shared
    from evals.errors import DatasetError

    if seeds < 1:
        raise DatasetError(f"seeds is {seeds}; give 1 or more")
    splits = [split(dataset, val_share, test_share, seed) for seed in range(seeds)]
    warn_of_shared(splits[0])
    return splits


def _extract(dataset: "LabelledImages", arguments: dict[str, Any], grids: bool) -> "Iterator[ImageFeatures]":
    """Features of the backbone, behind those of the baselines; each is extracted when it is its turn."""
    from evals.datasets.made import MADE
    from evals.features import extract_features, with_baselines

    settings = _settings(arguments)
    baselines = arguments["baselines"]
    wanted = with_baselines(settings) if baselines or (baselines is None and arguments["data"] in MADE) else [settings]
    for one in wanted:
        yield extract_features(dataset, one, Path(arguments["out"]) / "features", grids)


def _run_probes(
    run: "ProbeRun", probes: dict[str, dict[str, Any]], features: "ImageFeatures", splits: "list[Splits]"
) -> "Iterator[Result]":
    from tqdm import tqdm

    todo = [(name, seed) for name in probes for seed in range(len(splits))]
    for name, seed in tqdm(todo, features.title, unit="probe", disable=None):
        yield run.run(name, probes[name], features, splits[seed], seed)


def _report(out: Path, results: "list[Result]", settings: dict[str, Any]) -> None:
    """Writes everything, and prints the table that counts."""
    from evals.plots import can_plot, plot_results
    from evals.report import write_report

    print(write_report(out, results, settings))
    left_out = max(result.left_out for result in results)
    if left_out:
        print(f"{left_out:,} images could not be read and were left out; see failures.csv in {out}", file=sys.stderr)
    if settings["plots"] and can_plot():
        plot_results(out, results)
    print(f"all metrics are in {out / 'results.md'}", file=sys.stderr)
