"""`sail sweep`: which layer knows most, from one pass over the images."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evals.datasets.labelled import LabelledImages
from evals.datasets.loading import load_dataset
from evals.datasets.splits import Splits, split_each_seed
from evals.datasets.stored import label_features
from evals.errors import DatasetError
from evals.features import open_features
from evals.options import BACKBONE_OPTIONS, parse_probes, refuse_model_options
from evals.report import check_reports
from sail_encoder.backbones.registry import announce, check_features, choose_backbone, load_for, resolve_features
from sail_encoder.backbones.spec import FeatureSpec, VectorPooling
from sail_encoder.io.devices import check_device
from sail_encoder.io.refusals import check_writable

if TYPE_CHECKING:
    from evals.layers import LayerFeatures
    from evals.report import Facts
    from evals.results import LayerResult


SETTINGS: dict[str, dict[str, Any]] = {
    "ridge": {},
    "logistic": {"C": [1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0]},
    "knn": {"k": [10, 20, 100]},
}
"""Settings of the probes where none are given: a coarse path, since every layer is probed."""


def sweep(
    data: str,
    out: str,
    model: str = "sail-tiny",
    weights: str | None = None,
    random_weights: bool = False,
    max_tiles: int | None = None,
    msac: bool = False,
    project: bool = False,
    probes: str | dict[str, dict[str, Any] | None] | None = None,
    norm: bool = True,
    pool: VectorPooling = "mean",
    resize: str = "auto",
    max_tokens: int | None = None,
    exif_rotate: bool = False,
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device: str = "auto",
    labels: str | None = None,
    label_column: str | None = None,
    task: Literal["classification", "multilabel", "regression"] = "classification",
    val_share: float = 0.1,
    test_share: float = 0.2,
    plots: bool = True,
    latex: bool = False,
) -> int:
    """Probes every layer, from one pass over the images, and names the best.

    Features of all layers are pooled in memory, float32: images x layers x channels x 4 bytes. The best layer is chosen
    on the validation set; the table shows the test set. Norms of the tokens tell where a few of them dominate.

    Args:
        data: digits, scenes, a folder, a table, shards, ...; as in sail probe. Of what sail extract has left, all
            layers that are stored.
        out: Folder for sweep.json, sweep.csv, results.md and plots.
        model: sail-tiny, a folder, a Hub name such as ByteDance-Seed/SAIL-7B, timm/NAME, or hf/NAME.
        weights: For a timm model, a file or folder of weights in place of its published ones.
        random_weights: Whether to leave the weights random; they are the same every time.
        max_tiles: For SAIL-VL, tiles per image at most; by default what the checkpoint says.
        msac: For SAIL-VL, whether to see images under a second grid of tiles too; features are the mean of both.
        project: For SAIL-VL, whether to take the features that its language model receives.
        probes: Names separated by commas; in a file also their settings. Only those that take vectors; ridge, logistic
            (not for regression) and knn by default.
        norm: Whether to apply the model's final norm to every layer.
        pool: What becomes one vector: mean, max or generalized mean (gem) of the patches, the class token (cls), or
            that followed by the mean (cls_mean).
        resize: The model's own rule (auto), native, short512 (the shorter side), a side such as 224, or 448x672.
        max_tokens: Patches of an image at most under the native rule.
        exif_rotate: Whether to turn photographs upright as their EXIF orientation says.
        precision: Precision of the backbone; auto is bfloat16 on a GPU and float32 on a CPU.
        device: auto (a GPU where there is one), cpu, cuda:1, ...
        labels: For ImageNet its devkit or a list of synsets.
        label_column: Column of the labels in tables and shards.
        task: Kind of the labels in tables and shards.
        val_share: Share of the training set to choose the layer and hyper-parameters on, where the data has none.
        test_share: Share to test on, where the data has no test set.
        plots: Whether to draw accuracy and norms by layer.
        latex: Whether to write the table as results.tex too.

    Returns:
        Exit status: 0 done, 1 done although some images could not be read.
    """
    asked = dict(locals())
    check_device(device)
    check_features("all", resize, max_tokens)
    check_writable(Path(out))
    check_reports(Path(out), "sweep", others="results.json")
    named = None if probes is None else parse_probes(probes)
    stored = (Path(data) / "index.parquet").exists()
    if stored:
        refuse_model_options(sweep, asked, data)
    features = open_features(data, "concat", pool) if stored else None
    dataset = (
        label_features(features.folder, labels, label_column, task)
        if features
        else load_dataset(data, labels, label_column, task)
    )
    default = {name: None for name in SETTINGS if name != "logistic" or dataset.task != "regression"}
    named = named or parse_probes(default)
    chosen = {name: {**SETTINGS.get(name, {}), **settings} for name, settings in named.items()}
    (splits,) = split_each_seed(dataset, val_share, test_share, 1)
    wanted = features.spec if features else _resolve(asked)
    # Reports name what the features are of.
    asked["model"] = wanted.model
    announce("torch" if stored else model)
    from evals.layers import LayerFeatures
    from evals.probe_report import describe_probing
    from evals.probing import check_probes

    built = check_probes(chosen, dataset, [splits], device)
    if any(probe.takes == "grids" for probe in built):
        raise DatasetError("a sweep pools the patches, so it has no probes of grids; use ridge, logistic, knn, linear")
    if features is None:
        wanted, layers = _encode(dataset, wanted, device)
    else:
        layers = LayerFeatures.from_folder(features.folder, pool)
    results = list(_probe_layers(chosen, layers, dataset, splits, device))
    facts = describe_probing(dataset, [splits], [wanted], built, "all layers in one pass, each probed alone")
    _report(Path(out), layers, results, asked, facts)
    missing = 0 if stored else len(dataset.images.images) - len(layers.keys)
    if missing:
        print(f"{missing:,} images could not be read and were left out", file=sys.stderr)
    return int(missing > 0)


def _resolve(asked: dict[str, Any]) -> FeatureSpec:
    """Features of all layers, as the options of the command have them."""
    fields = {name: asked[name] for name in ("norm", "pool", "exif_rotate", "precision")}
    fields |= choose_backbone(*(asked[name] for name in BACKBONE_OPTIONS))
    return resolve_features(asked["model"], "all", asked["resize"], asked["max_tokens"], **fields)[1]


def _encode(dataset: LabelledImages, wanted: FeatureSpec, device: str) -> "tuple[FeatureSpec, LayerFeatures]":
    """Features of all layers, and their description with what is known once the backbone is loaded."""
    from evals.layers import pool_layers

    backbone = load_for(wanted, device)
    known = replace(
        wanted,
        weights=backbone.fingerprint(wanted.depth - 1),
        precision=str(backbone.dtype).removeprefix("torch."),
        store_dtype="float32",
    )
    return known, pool_layers(backbone, dataset.images.images, known)


def _probe_layers(
    probes: dict[str, dict[str, Any]], layers: "LayerFeatures", dataset: LabelledImages, splits: Splits, device: str
) -> "Iterator[LayerResult]":
    """Each probe on each layer."""
    import numpy as np
    from tqdm import tqdm

    from evals.probing import PART_NAMES, build_probe, head_task, probe_layer, require_readable

    rows = {key: row for row, key in enumerate(layers.keys)}
    parts = []
    for name, index in zip(PART_NAMES, (splits.train, splits.val, splits.test), strict=True):
        require_readable(dataset, name, [dataset.keys[sample] in rows for sample in index])
        known = [sample for sample in index if dataset.keys[sample] in rows]
        parts.append((np.array([rows[dataset.keys[sample]] for sample in known], int), dataset.targets[known]))
    todo = [(layer, name) for layer in range(len(layers.vectors)) for name in probes]
    for layer, name in tqdm(todo, "probes", disable=None):
        number = layers.numbers[layer]
        probe = build_probe(name, probes[name], head_task(dataset), 0, device)
        samples = [(layers.vectors[layer][where], targets) for where, targets in parts]
        yield probe_layer(probe, number, *samples)


def _report(
    out: Path, layers: "LayerFeatures", results: "Sequence[LayerResult]", settings: dict[str, Any], facts: "Facts"
) -> None:
    """Writes everything, prints the table, and names the best layers."""
    from evals.plots import can_plot, plot_layers, save
    from evals.probe_report import write_sweep

    print(write_sweep(out, layers, results, settings, facts, settings["latex"]))
    if settings["plots"] and can_plot():
        names = list(dict.fromkeys(result.probe for result in results))
        series = {name: [result.value for result in results if result.probe == name] for name in names}
        title, primary = f"{settings['model']} on {settings['data']}", results[0].primary
        save(plot_layers(title, series, f"{primary} on the test set"), out / "plots" / "accuracy.png")
        if not len(layers.mean_norms):
            return
        norms = {"largest": layers.max_norms.tolist(), "mean": layers.mean_norms.tolist()}
        save(plot_layers(title, norms, "length of a token's state", log=True), out / "plots" / "norms.png")
