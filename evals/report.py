"""Reports that can be pasted: tables in Markdown and in LaTeX, and below them how their numbers were made.

The protocol is a list of facts, each a name and a text: data and split sizes, model and fingerprint, layers, pooling,
pixels, mode, steps, learning rate, seeds, versions and date.
"""

import csv
import re
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from sail_encoder.backbones.spec import FeatureSpec
from sail_encoder.io.errors import StoreError
from sail_encoder.io.files import replacing
from sail_encoder.io.runs import command_of, read_run
from sail_encoder.io.versions import versions

RESULTS = "results"
"""Name of the files of a report, without their suffix."""

EDGE = "*"
"""Mark after a number whose hyper-parameter was chosen at the edge of its grid."""

EDGE_NOTE = f"{EDGE} chosen at the edge of its grid, so that a better value may lie beyond it"

Facts = Sequence[tuple[str, str]]
"""Names and texts of a protocol, in order."""

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}

Table = Sequence[Sequence[str]]
"""Rows of text, a cell per column; the first row names the columns."""


def check_reports(out: Path, command: str, others: str) -> None:
    """Makes sure that a folder holds no report of another command, whose results.md would be replaced.

    Args:
        out: The folder.
        command: The command that is going to write.
        others: A file that another command leaves with its report and this one does not.

    Raises:
        StoreError: If it does.
    """
    maker = command_of(read_run(out) or {"settings": {}})
    if maker in (None, "extract"):
        if not (out / others).exists():
            return
        maker = others
    else:
        maker = f"sail {maker}"
    raise StoreError(f"{out} holds the results of another command ({maker}); sail {command} needs another --out")


def markdown_of(table: Table) -> str:
    """Markdown whose columns line up, the first on the left and the others on the right."""
    header, *rows = [[cell.replace("|", "\\|") for cell in row] for row in table]
    widths = [max(3, *map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = (
        [cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(pairs)]
        for pairs in (zip(row, widths, strict=True) for row in (header, rule, *rows))
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def latex_of(table: Table) -> str:
    """A `tabular` with the rules of the package booktabs."""
    head, *body = (" & ".join(map(escape_latex, row)) + r" \\" for row in table)
    columns = "l" + "r" * (len(table[0]) - 1)
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule"]
    return "\n".join([*lines, r"\end{tabular}"])


def escape_latex(words: str) -> str:
    """Text as LaTeX prints it."""
    return re.sub(r"[\\~^±&%$#_{}]", lambda sign: _LATEX[sign[0]], words)


def write_tables(out: Path, tables: Sequence[Table], facts: Facts, latex: bool) -> None:
    """Writes results.md, and results.tex beside it.

    Args:
        out: Folder of the run.
        tables: The tables, the one that counts first.
        facts: How their numbers were made; versions and date are added.
        latex: Whether to write results.tex too.
    """
    marked = any(EDGE in cell for table in tables for row in table[1:] for cell in row)
    notes = [EDGE_NOTE] if marked else []
    facts = [*facts, *_machine_facts()]
    lines = "\n".join(f"- {name}: {text}" for name, text in facts)
    _write(
        out / f"{RESULTS}.md", [*map(markdown_of, tables), *(note.replace(EDGE, f"\\{EDGE}") for note in notes), lines]
    )
    if latex:
        comments = "\n".join(f"% {line}" for line in (*(f"{name}: {text}" for name, text in facts), *notes))
        _write(out / f"{RESULTS}.tex", [comments, *map(latex_of, tables)])


def _write(path: Path, parts: Iterable[str]) -> None:
    with replacing(path) as unfinished:
        unfinished.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Writes a CSV file."""
    with (
        replacing(path) as unfinished,
        unfinished.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        csv.writer(file).writerows(rows)


def describe_features(features: FeatureSpec) -> str:
    """Model, fingerprint of its weights, layers, pooling, pixels and precision of features, in words."""
    layers = ", ".join(map(str, features.layers))
    options = [f"{name} {value}" for name, value in sorted(features.options.items())]
    stored = "" if features.store_dtype == features.precision else f", stored as {features.store_dtype}"
    words = [
        features.title,
        f"weights {features.weights}" if features.weights else "weights unknown",
        *options,
        f"layers {layers}" + (" after the final norm" if features.norm else ", no final norm"),
        f"pooling {features.pool}" + (", the class token beside each patch" if features.class_token else ""),
        describe_pixels(features),
        f"precision {features.precision}{stored}",
    ]
    return "; ".join(words)


def describe_pixels(features: FeatureSpec) -> str:
    """The size at which images are seen, in words."""
    size = features.size
    limit = f", at most {size.max_tokens:,} patches" if size.fixed is None and size.tile is None else ""
    return f"pixels {size}{limit}"


def _machine_facts() -> Facts:
    """The versions that were used, and the date."""
    used = ", ".join(f"{name} {version}" for name, version in versions().items() if version is not None)
    return [("versions", used), ("date", date.today().isoformat())]
