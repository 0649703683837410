"""What `sail probe` and `sail sweep` report: tables of what probes have reached, and how."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from evals.datasets.labelled import LabelledImages
from evals.datasets.splits import Splits
from evals.layers import LayerFeatures
from evals.report import EDGE, Facts, Table, describe_features, markdown_of, write_csv, write_tables
from evals.results import LayerResult, Result, best_layers
from heads.estimator import VectorProbe
from heads.probe import Probe
from heads.trained import TrainedProbe
from sail_encoder.backbones.spec import FeatureSpec
from sail_encoder.io.files import write_json

PERCENT = {"top1", "top5", "mean_per_class", "f1", "f1_micro", "mAP", "exact"}
"""Metrics that are shares, and printed in percent."""

Groups = dict[tuple[str, str], list[Result]]
"""Results by features and probe, one a seed."""


def write_report(out: Path, results: Sequence[Result], settings: dict[str, Any], facts: Facts, latex: bool) -> str:
    """Writes results.json, results.csv and results.md; warns of values at the edge of their grids.

    Args:
        out: Folder of the run.
        results: Results of all features, probes and seeds.
        settings: What the run was asked for.
        facts: How the results were made, see `describe_probing`.
        latex: Whether to write results.tex too.

    Returns:
        A table of the metric that counts, features by probes, in Markdown.
    """
    groups = group(results)
    table = summary_table(groups)
    content = {"settings": settings, "results": [asdict(result) for result in results]}
    write_json(out / "results.json", content)
    write_csv(out / "results.csv", _csv_rows(results))
    write_tables(out, [table, detail_table(groups)], facts, latex)
    warn_of_edges(groups)
    return markdown_of(table)


def write_sweep(
    out: Path,
    layers: LayerFeatures,
    results: Sequence[LayerResult],
    settings: dict[str, Any],
    facts: Facts,
    latex: bool,
) -> str:
    """Writes sweep.json, sweep.csv and results.md; warns of values at the edge of their grids.

    Args:
        out: Folder of the run.
        layers: Features of the layers.
        results: One for each layer and probe.
        settings: What the run was asked for.
        facts: How the results were made, see `describe_probing`.
        latex: Whether to write results.tex too.

    Returns:
        A table by layer, in Markdown, followed by a line that names the best layers.
    """
    best = best_layers(results)
    table = sweep_table(layers, results)
    chosen = "; ".join(
        f"{name} {one.layer} ({format_value(one.value, one.primary)}{_sign(one.primary)})" for name, one in best.items()
    )
    norms = {"mean": layers.mean_norms.tolist(), "max": layers.max_norms.tolist()}
    content = {
        "settings": settings,
        "best_layer": {name: one.layer for name, one in best.items()},
        "token_norms": norms,
        "results": [asdict(result) for result in results],
    }
    write_json(out / "sweep.json", content)
    header = [field.name for field in fields(LayerResult)]
    write_csv(out / "sweep.csv", [header, *([*asdict(result).values()] for result in results)])
    about_best = "best layer on the validation set (test result)"
    write_tables(out, [table], [(about_best, chosen), *facts], latex)
    for probe in best:
        at_edge = [str(one.layer) for one in results if one.probe == probe and one.at_edge]
        if at_edge:
            _warn(f"{probe} chose a value at the edge of its grid in layers {', '.join(at_edge)}")
    return f"{markdown_of(table)}\n\n{about_best}: {chosen}"


def describe_probing(
    dataset: LabelledImages,
    splits: Sequence[Splits],
    features: Iterable[FeatureSpec],
    probes: Iterable[Probe],
    mode: str,
    choose_on: str = "validation",
) -> Facts:
    """The protocol of probes.

    Args:
        dataset: Samples and targets.
        splits: One a seed.
        features: All features that are compared.
        probes: Not fitted.
        mode: Where the features come from, in words.
        choose_on: Where hyper-parameters are chosen.
    """
    first = splits[0]
    sizes = f"{len(first.train):,} for training, {len(first.val):,} for validation, {len(first.test):,} for testing"
    return [
        ("data", f"{dataset.name}, {dataset.task}"),
        ("split", f"{sizes}; hyper-parameters are chosen on the {choose_on} set"),
        *(("model", describe_features(one)) for one in features),
        ("mode", mode),
        *(("probe", f"{probe.kind}, {describe_probe(probe, len(first.train))}") for probe in probes),
        ("seeds", ", ".join(map(str, range(len(splits))))),
    ]


def describe_probe(probe: Probe, samples: int) -> str:
    """Steps and learning rates of a probe that is trained, or else the grid of its hyper-parameter."""
    if isinstance(probe, TrainedProbe):
        recipe = probe.recipe.for_samples(samples)
        rates = _span("rate", recipe.learning_rates)
        return (
            f"{recipe.all_steps:,} steps of {recipe.batch_size}, {rates} for a batch of {probe.base_batch_size}, "
            f"{recipe.optimizer}, {recipe.schedule}"
        )
    return _span(probe.parameter, probe.candidates()) if isinstance(probe, VectorProbe) else "its own settings"


def _span(name: str, values: Sequence[float]) -> str:
    """A grid of values in a few words."""
    if len(values) == 1:
        return f"{name} {values[0]:g}"
    return f"{name} of {len(values)} values from {min(values):g} to {max(values):g}"


def sweep_table(layers: LayerFeatures, results: Sequence[LayerResult]) -> Table:
    """The metric that counts by layer and probe, beside the lengths of the tokens' states."""
    probes = list(dict.fromkeys(result.probe for result in results))
    values = {(one.layer, one.probe): format_value(one.value, one.primary) + EDGE * one.at_edge for one in results}
    rows = [[str(layer), *(values[layer, probe] for probe in probes)] for layer in layers.numbers]
    norms = list(zip(layers.mean_norms, layers.max_norms, strict=True))
    for row, lengths in zip(rows, norms, strict=False):
        row += [f"{length:.4g}" for length in lengths]
    headings = ["layer", *(f"{probe} {with_unit(results[0].primary)}" for probe in probes)]
    return [[*headings, *(["mean norm", "largest norm"] if norms else [])], *rows]


def group(results: Iterable[Result]) -> Groups:
    """Brings the seeds of each features and probe together."""
    groups: Groups = {}
    for result in results:
        groups.setdefault((result.features, result.probe), []).append(result)
    return groups


def summary_table(groups: Groups) -> Table:
    """The metric that counts, a row for each features and a column for each probe."""
    probes = list(dict.fromkeys(probe for _, probe in groups))
    rows = [
        [features, *(primary_cell(groups.get((features, probe), [])) for probe in probes)]
        for features in dict.fromkeys(features for features, _ in groups)
    ]
    primary = next(iter(groups.values()))[0].primary
    return [[with_unit(primary), *probes], *rows]


def primary_cell(results: Sequence[Result]) -> str:
    """The metric that counts of all seeds, marked where a value was chosen at the edge; empty where there is none."""
    return _cell(results, results[0].primary) + _mark(results) if results else ""


def detail_table(groups: Groups) -> Table:
    """All metrics, a row for each features and probe, with the hyper-parameters that were chosen."""
    metrics = list(dict.fromkeys(name for found in groups.values() for one in found for name in one.metrics))
    rows = []
    for (features, probe), found in groups.items():
        chosen = ", ".join(dict.fromkeys(f"{one.parameter} {one.chosen:.3g}{EDGE * one.at_edge}" for one in found))
        cells = [_cell(found, metric) if metric in found[0].metrics else "" for metric in metrics]
        rows.append([features, probe, chosen, *cells, f"{mean(result.seconds for result in found):.1f}"])
    return [["features", "probe", "chosen", *map(with_unit, metrics), "seconds"], *rows]


def warn_of_edges(groups: Mapping[tuple[str, str], Sequence[Result]]) -> None:
    """Says on stderr which hyper-parameters were chosen at the edge of their grids."""
    for (features, probe), found in groups.items():
        for one in {one.chosen: one for one in found if one.at_edge}.values():
            grid = [value for value, _ in one.path]
            span = f"{min(grid):g} to {max(grid):g}"
            _warn(f"{probe} on {features} chose {one.parameter} {one.chosen:g} at the edge of its grid ({span})")


def _warn(what: str) -> None:
    print(f"warning: {what}; a better value may lie beyond it, see --probes", file=sys.stderr)


def with_unit(metric: str) -> str:
    """Name of a metric as it heads a column."""
    return f"{metric}{_sign(metric)}"


def _sign(metric: str) -> str:
    return " %" if metric in PERCENT else ""


def _cell(results: Sequence[Result], metric: str) -> str:
    """The mean, and the standard deviation where there are several seeds."""
    values = [result.metrics[metric] for result in results]
    spread = f" ± {format_value(stdev(values), metric)}" if len(values) > 1 else ""
    return f"{format_value(mean(values), metric)}{spread}"


def _mark(results: Sequence[Result]) -> str:
    return EDGE * any(result.at_edge for result in results)


def format_value(value: float, metric: str) -> str:
    """A share in percent, another value with three decimals."""
    return f"{100 * value:.1f}" if metric in PERCENT else f"{value:.3f}"


def _csv_rows(results: Sequence[Result]) -> Iterator[list[Any]]:
    metrics = list(dict.fromkeys(name for result in results for name in result.metrics))
    yield ["features", "probe", "seed", "parameter", "chosen", *metrics, "seconds"]
    for one in results:
        values = [one.metrics.get(metric, "") for metric in metrics]
        yield [one.features, one.probe, one.seed, one.parameter, one.chosen, *values, one.seconds]
