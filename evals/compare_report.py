"""What `sail compare` reports: a row per backbone, as a table, as a chart and as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from evals.probe_report import PERCENT, group, primary_cell, warn_of_edges, with_unit
from evals.report import Facts, Table, markdown_of, write_tables
from evals.results import Result
from sail_encoder.backbones.spec import FeatureSpec
from sail_encoder.io.files import write_json
from sail_encoder.pictures.bars import Bars, draw_bars, format_number


@dataclass(frozen=True)
class BackboneScores:
    """What one backbone has reached.

    Attributes:
        features: Which features of it were taken.
        parameters: Parameters that these need.
        tokens: Patches per image on average.
        images_per_second: In forward passes alone.
        results: Of each probe and seed.
        mean_iou: Of the dense head, as a share; None where there is none.
    """

    features: FeatureSpec
    parameters: int
    tokens: float
    images_per_second: float
    results: Sequence[Result]
    mean_iou: float | None = None

    def of_probe(self, name: str) -> list[Result]:
        """Results of one probe, one a seed."""
        return [result for result in self.results if result.probe == name]


def write_comparison(out: Path, scores: Sequence[BackboneScores], asked: Mapping[str, Any], facts: Facts) -> str:
    """Writes results.json, results.md and chart.png; warns of values at the edge of their grids.

    Args:
        out: Folder of the comparison.
        scores: One a backbone.
        asked: Options of the command.
        facts: How the numbers were made.

    Returns:
        The table in Markdown.
    """
    write_json(out / "results.json", {"settings": dict(asked), "models": [_as_json(one) for one in scores]})
    table = comparison_table(scores)
    write_tables(out, [table], facts, asked["latex"])
    warn_of_edges(group(result for one in scores for result in one.results))
    draw_bars([one.features.title for one in scores], _bars(scores), out / "chart.png")
    return markdown_of(table)


def _as_json(one: BackboneScores) -> dict[str, Any]:
    """Shares stay shares; probes by name, with the mean of the metric that counts and each seed's result."""
    probes = {}
    for name in dict.fromkeys(result.probe for result in one.results):
        found = one.of_probe(name)
        primary = found[0].primary
        probes[name] = {
            "metric": primary,
            "mean": mean(result.metrics[primary] for result in found),
            "seeds": [asdict(result) for result in found],
        }
    return {
        "model": one.features.model,
        "title": one.features.title,
        "features": one.features.to_json(),
        "parameters": one.parameters,
        "tokens_per_image": one.tokens,
        "images_per_second": one.images_per_second,
        "probes": probes,
        "mIoU": one.mean_iou,
    }


def comparison_table(scores: Sequence[BackboneScores]) -> Table:
    """A row per backbone: parameters, tokens per image, images per second, probes and mIoU."""
    probes = list(dict.fromkeys((result.probe, result.primary) for result in scores[0].results))
    has_masks = scores[0].mean_iou is not None
    rows = [
        [
            one.features.title,
            f"{one.parameters / 1e6:,.1f} M" if one.parameters else "0",
            f"{one.tokens:,.0f}",
            format_number(one.images_per_second),
            *(primary_cell(one.of_probe(name)) for name, _ in probes),
            *([f"{100 * (one.mean_iou or 0):.1f}"] if has_masks else []),
        ]
        for one in scores
    ]
    names = [f"{name} {with_unit(primary)}" for name, primary in probes]
    return [["model", "parameters", "tokens/image", "images/s", *names, *(["mIoU %"] if has_masks else [])], *rows]


def _bars(scores: Sequence[BackboneScores]) -> list[Bars]:
    """Groups of bars, one a column of the table that says how good or how fast backbones are."""
    groups: list[Bars] = []
    for name, primary in dict.fromkeys((result.probe, result.primary) for result in scores[0].results):
        factor = 100 if primary in PERCENT else 1
        values = [factor * mean(result.metrics[primary] for result in one.of_probe(name)) for one in scores]
        groups.append((f"{name} {with_unit(primary)}", values, 100 if primary in PERCENT else None))
    if scores[0].mean_iou is not None:
        groups.append(("mIoU %", [100 * (one.mean_iou or 0) for one in scores], 100))
    return [*groups, ("images/s", [one.images_per_second for one in scores], None)]
