"""Tables of results: JSON, CSV and Markdown."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from evals.layers import LayerFeatures
from evals.results import LayerResult, Result, best_layers
from sail_encoder.io.files import replacing, write_json

PERCENT = {"top1", "top5", "mean_per_class", "f1", "f1_micro", "mAP", "exact"}
"""Metrics that are shares, and printed in percent."""

Groups = dict[tuple[str, str], list[Result]]
"""Results by features and probe, one a seed."""


def write_report(out: Path, results: Sequence[Result], settings: dict[str, Any]) -> str:
    """Writes results.json, results.csv and results.md.

    Args:
        out: Folder of the run.
        results: Results of all features, probes and seeds.
        settings: What the run was asked for.

    Returns:
        A table of the metric that counts, features by probes, in Markdown.
    """
    groups = group(results)
    table = summary_table(groups)
    content = {"settings": settings, "results": [asdict(result) for result in results]}
    write_json(out / "results.json", content)
    write_csv(out / "results.csv", _csv_rows(results))
    with replacing(out / "results.md") as path:
        path.write_text(f"{table}\n\n{detail_table(groups)}\n", encoding="utf-8")
    return table


def write_sweep(out: Path, layers: LayerFeatures, results: Sequence[LayerResult], settings: dict[str, Any]) -> str:
    """Writes sweep.json, sweep.csv and sweep.md.

    Args:
        out: Folder of the run.
        layers: Features of the layers.
        results: One for each layer and probe.
        settings: What the run was asked for.

    Returns:
        A table by layer, in Markdown, followed by a line that names the best layers.
    """
    best = best_layers(results)
    table = sweep_table(layers, results)
    lines = "; ".join(f"{name} {one.layer} ({_format(one.value, one.primary)})" for name, one in best.items())
    text = f"{table}\n\nbest layer on the validation set (test result): {lines}"
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
    with replacing(out / "sweep.md") as path:
        path.write_text(f"{text}\n", encoding="utf-8")
    return text


def sweep_table(layers: LayerFeatures, results: Sequence[LayerResult]) -> str:
    """The metric that counts by layer and probe, beside the lengths of the tokens' states."""
    probes = list(dict.fromkeys(result.probe for result in results))
    values = {(one.layer, one.probe): _format(one.value, one.primary) for one in results}
    rows = [[str(layer), *(values[layer, probe] for probe in probes)] for layer in layers.numbers]
    norms = list(zip(layers.mean_norms, layers.max_norms, strict=True))
    for row, lengths in zip(rows, norms, strict=False):
        row += [f"{length:.4g}" for length in lengths]
    primary = _unit(results[0].primary)
    headings = ["layer", *(f"{probe} {primary}" for probe in probes)]
    return markdown([*headings, *(["mean norm", "largest norm"] if norms else [])], rows)


def group(results: Iterable[Result]) -> Groups:
    """Brings the seeds of each features and probe together."""
    groups: Groups = {}
    for result in results:
        groups.setdefault((result.features, result.probe), []).append(result)
    return groups


def summary_table(groups: Groups) -> str:
    """The metric that counts, a row for each features and a column for each probe."""
    probes = list(dict.fromkeys(probe for _, probe in groups))
    rows = []
    for features in dict.fromkeys(features for features, _ in groups):
        cells = [groups.get((features, probe), []) for probe in probes]
        rows.append([features, *(_cell(found, found[0].primary) if found else "" for found in cells)])
    primary = next(iter(groups.values()))[0].primary
    return markdown([_unit(primary), *probes], rows)


def detail_table(groups: Groups) -> str:
    """All metrics, a row for each features and probe, with the hyper-parameters that were chosen."""
    metrics = list(dict.fromkeys(name for found in groups.values() for one in found for name in one.metrics))
    rows = []
    for (features, probe), found in groups.items():
        chosen = ", ".join(dict.fromkeys(f"{result.parameter} {result.chosen:.3g}" for result in found))
        cells = [_cell(found, metric) if metric in found[0].metrics else "" for metric in metrics]
        rows.append([features, probe, chosen, *cells, f"{mean(result.seconds for result in found):.1f}"])
    return markdown(["features", "probe", "chosen", *map(_unit, metrics), "seconds"], rows)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up, the first on the left and the others on the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    rules = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        [
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in (header, rules, *rows)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _unit(metric: str) -> str:
    return f"{metric} %" if metric in PERCENT else metric


def _cell(results: Sequence[Result], metric: str) -> str:
    """The mean, and the standard deviation where there are several seeds."""
    values = [result.metrics[metric] for result in results]
    spread = f" ± {_format(stdev(values), metric)}" if len(values) > 1 else ""
    return f"{_format(mean(values), metric)}{spread}"


def _format(value: float, metric: str) -> str:
    return f"{100 * value:.1f}" if metric in PERCENT else f"{value:.3f}"


def _csv_rows(results: Sequence[Result]) -> Iterator[list[Any]]:
    metrics = list(dict.fromkeys(name for result in results for name in result.metrics))
    yield ["features", "probe", "seed", "parameter", "chosen", *metrics, "seconds"]
    for one in results:
        values = [one.metrics.get(metric, "") for metric in metrics]
        yield [one.features, one.probe, one.seed, one.parameter, one.chosen, *values, one.seconds]


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Writes a CSV file."""
    with replacing(path) as unfinished, unfinished.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
