"""What a scored head leaves behind: a file for programs, a table for people, both with how the numbers were made."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from evals.plots import plot_iou, save
from evals.segmentation.run_folder import IOU, RESULTS
from evals.segmentation.scores import Scores, format_scores
from sail_encoder.io.files import write_json

if TYPE_CHECKING:
    from heads.dense.inference import Inference
    from heads.dense.registry import TrainedHead


def write_report(
    folder: Path | None, scores: Scores, trained: "TrainedHead", inference: "Inference", images: int
) -> str:
    """Writes results.json and returns the table.

    Args:
        folder: Where to write; nothing is written where it is None.
        scores: The scores.
        trained: The head.
        inference: How images were looked at.
        images: How many there were.
    """
    source = trained.source
    way = {
        "backbone": source.model,
        "weights": source.weights,
        "layers": list(source.layers),
        "norm": source.norm,
        "head": trained.kind,
        "trained": trained.mode,
        "resize": str(inference.resize),
        "max_tokens": inference.resize.max_tokens,
        "window": inference.window,
        "stride": inference.stride,
        "fit": inference.fit,
        "scales": list(inference.scales),
        "flip": inference.flip,
        "images": images,
    }
    table = scores.as_dict(trained.classes)
    layers = ", ".join(map(str, source.layers))
    lines = [
        f"{trained.kind} head, {trained.mode} training, layers {layers} of {source.model}",
        f"{images:,} images, {inference}",
        format_scores(table),
    ]
    if folder is not None:
        write_json(folder / RESULTS, {"scores": table, "protocol": way})
        # Where matplotlib is not installed, the table says the same.
        with suppress(ImportError):
            classes = {name: row["IoU"] for name, row in table["classes"].items()}
            save(plot_iou(f"{trained.kind} head on {source.title}", classes), folder / IOU)
        lines.append(f"results and pictures are in {folder}")
    return "\n".join(lines)
