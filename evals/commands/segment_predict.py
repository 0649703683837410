"""`sail segment predict`: label maps of any images."""

import sys
from pathlib import Path
from typing import Literal

from evals.segmentation.option_checks import check_folder, check_inference, inference_of
from evals.segmentation.run_folders import PREDICT, check_owner
from heads.dense.registry import describe_dense_head, fingerprint_head, load_dense_head
from sail_encoder.backbones.registry import announce
from sail_encoder.images.sources import list_images


def predict(
    source: list[str],
    head: str,
    out: str,
    model: str | None = None,
    window: str | int | None = None,
    stride: int | None = None,
    fit: Literal["resize", "pad"] | None = None,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    exif_rotate: bool = False,
    overlays: bool = True,
    device: str = "auto",
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    overwrite: bool = False,
) -> int:
    """Writes label maps of images, and overlays.

    A label map is an index PNG of the image's own size; classes.txt names the indices. Killed or stopped, the same
    command goes on with the images that are missing; run again, it also predicts those that have changed.

    Args:
        source: Image files, folders, globs, lists (.txt, .csv, .tsv, .parquet) or .tar shards.
        head: Folder that sail segment train has written.
        out: Folder for labels, overlays and classes.txt, and failures.csv where images cannot be read.
        model: Where the backbone is, if it has moved since the head was trained.
        window: Windows of sliding inference in pixels, or whole; as in training by default.
        stride: How far a window is from the next; as in training by default.
        fit: How images are brought to whole patches: resize rounds each side up; pad keeps the size and adds a border
            at the bottom and at the right; as in training by default.
        scales: Factors on the size, such as [0.75,1.0,1.25]; the probabilities of all are averaged.
        flip: Whether to look at mirrored images too.
        exif_rotate: Whether to turn photographs upright as their EXIF orientation says; label maps
            are then upright too.
        overlays: Whether to draw the classes over the images.
        device: auto, cpu, cuda, cuda:1 or mps.
        precision: Precision of the backbone; auto is bfloat16 on a GPU and float32 on a CPU.
        overwrite: Whether to delete earlier label maps in the folder first.

    Returns:
        Exit status: 0 done, 1 done with failures recorded.
    """
    check_folder("out", out)
    check_owner(Path(out), PREDICT)
    _, features = describe_dense_head(head)
    check_inference(model or features.model, window, stride, scales, device)
    listing = list_images(source)
    announce(model or features.model)
    from evals.segmentation.predictions import FAILURES, LabelFolder
    from heads.dense.segmenter import load_segmenter

    trained = load_dense_head(head)
    segmenter = load_segmenter(trained, model, device, precision)
    inference = inference_of(trained, segmenter.backbone.patch_size, window, stride, scales, flip, fit)
    folder = LabelFolder(Path(out), trained.classes, overlays, exif_rotate)
    settings = {
        "root": listing.root,
        "head": fingerprint_head(head),
        "inference": f"{inference}, exif_rotate" if exif_rotate else str(inference),
        "precision": str(segmenter.backbone.dtype).removeprefix("torch."),
    }
    folder.claim(settings, overwrite)
    done, failed = folder.fill(segmenter, inference, listing.images)
    print(f"{len(listing.images) - failed:,} images in {out}, {done:,} of them new")
    if failed:
        print(f"{failed:,} images failed; {Path(out) / FAILURES} says why", file=sys.stderr)
    return 1 if failed else 0
