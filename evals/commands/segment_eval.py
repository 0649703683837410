"""`sail segment eval`: the scores of a trained head on a data set with the same classes, or of a Pixel-SAIL."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from evals.segmentation.labels import ClassMap
from evals.segmentation.layouts import DataSource
from evals.segmentation.option_checks import check_folder, check_inference, check_range, inference_of
from evals.segmentation.pairs import LayoutName
from evals.segmentation.run_folders import EVAL, check_owner
from heads.contract import SavedHead
from heads.dense.registry import describe_dense_head, load_dense_head
from sail_encoder.backbones.registry import announce
from sail_encoder.io.errors import UserError
from sail_encoder.io.runs import read_run, write_run
from sail_encoder.io.versions import versions
from sail_encoder.models.pixel_sail.published import names_pixel_sail

OVERLAYS = 8
"""Images that are drawn by default."""


def evaluate(
    data: str,
    head: str,
    out: str | None = None,
    split: Literal["train", "val", "test", "testA", "testB", "all"] = "val",
    layout: LayoutName | None = None,
    class_map: str | None = None,
    reduce_zero_label: bool | None = None,
    ignore_label: int | None = None,
    model: str | None = None,
    window: str | int | None = None,
    stride: int | None = None,
    fit: Literal["resize", "pad"] | None = None,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    overlays: int = OVERLAYS,
    label_maps: bool = False,
    latex: bool = False,
    device: str = "auto",
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    check: bool = True,
) -> int:
    """Scores a segmentation head, or a Pixel-SAIL, on a data set.

    Label maps are compared at the original size of the masks; the table is printed. Masks are read as in training,
    in the same layout and with the same meaning of the ids, unless options say otherwise. Of a Pixel-SAIL, cIoU and
    gIoU of referring expressions are computed.

    Args:
        data: Folder of the data set; for a Pixel-SAIL as in sail segment train --head referring.
        head: Folder that sail segment train has written, or any Pixel-SAIL.
        out: Folder for results.json, results.md, images.csv (a score per image), overlays and label maps; without it
            the table is only printed.
        split: Which part of the data set; for a Pixel-SAIL also test, testA and testB, and all for all but train.
        layout: How the data set is laid out; folder is images/train with masks/train, and the same for val. As in
            training by default.
        class_map: JSON file with the name of each id in the masks, null where its pixels do not count; in place of
            reduce_zero_label and ignore_label.
        reduce_zero_label: Whether 0 does not count and classes start at 1; as in training by default.
        ignore_label: The id of pixels that do not count; as in training by default.
        model: Where the backbone is, if it has moved since the head was trained.
        window: Windows of sliding inference in pixels, or whole; as in training by default.
        stride: How far a window is from the next; as in training by default.
        fit: How images are brought to whole patches: resize rounds each side up; pad keeps the size and adds a border
            at the bottom and at the right; as in training by default.
        scales: Factors on the size, such as [0.75,1.0,1.25]; the probabilities of all are averaged.
        flip: Whether to look at mirrored images too.
        overlays: With --out, images to draw beside mask and prediction, and the worst and the best of all.
        label_maps: With --out, whether to write an index PNG of every image.
        latex: With --out, whether to write the tables as results.tex too.
        device: auto, cpu, cuda, cuda:1 or mps.
        precision: Precision of the backbone; auto is bfloat16 on a GPU and float32 on a CPU.
        check: Whether to look through all masks first.

    Returns:
        Exit status 0.
    """
    check_range("overlays", overlays, 0)
    check_folder("out", out)
    if names_pixel_sail(head):
        _refuse_options_of_classes(
            head,
            {"layout": layout, "class_map": class_map, "reduce_zero_label": reduce_zero_label},
            {"ignore_label": ignore_label, "model": model, "window": window, "stride": stride, "fit": fit},
            {"scales": scales != (1.0,) or None, "flip": flip or None, "label_maps": label_maps or None},
            {"overlays": overlays != OVERLAYS or None, "check": None if check else False},
        )
        from evals.referring.evaluation import evaluate_referring

        return evaluate_referring(data, head, out, split, latex, device, precision)
    if split not in ("train", "val"):
        raise UserError(
            f"--split {split} is one of referring expressions, which a Pixel-SAIL answers; use train or val"
        )
    folder = Path(out) if out is not None else None
    if folder is not None:
        check_owner(folder, EVAL)
    saved, features = describe_dense_head(head)
    check_inference(model or features.model, window, stride, scales, device)
    source, ids = _as_in_training(saved, data, layout, class_map, reduce_zero_label, ignore_label)
    (dataset,) = source.open(split, check=check, classes=saved.settings["classes"], ids=ids)
    _check_classes(saved.settings["classes"], dataset.class_map.names)
    announce(model or features.model)
    from evals.segmentation.extremes import show_extremes
    from evals.segmentation.scores import Gallery, score, write_report
    from heads.dense.segmenter import load_segmenter

    trained = load_dense_head(head)
    segmenter = load_segmenter(trained, model, device, precision)
    inference = inference_of(trained, segmenter.backbone.patch_size, window, stride, scales, flip, fit)
    if folder is not None:
        write_run(folder, EVAL, {"settings": {"head": str(head), "data": data}, "versions": versions()})
    with Gallery(dataset, folder, overlays, label_maps) as keep:
        scores = score(segmenter, inference, dataset, keep)
    if folder is not None:
        show_extremes(segmenter, inference, dataset, scores, folder, overlays)
    training = read_run(Path(head)) or {"settings": {}}
    name = f"{data}, {split}"
    print(write_report(folder, scores, trained, inference, len(dataset), name, training["settings"], latex))
    return 0


def _refuse_options_of_classes(head: str, *given: Mapping[str, Any]) -> None:
    """Raises a `UserError` if an option is given that only heads of classes have; None stands for none."""
    foreign = [name for options in given for name, value in options.items() if value is not None]
    if foreign:
        raise UserError(f"--{foreign[0]} has no effect on {head}, which is a Pixel-SAIL; leave it out")


def _as_in_training(
    saved: SavedHead,
    data: str,
    layout: LayoutName | None,
    class_map: str | None,
    reduce_zero_label: bool | None,
    ignore_label: int | None,
) -> tuple[DataSource, ClassMap | None]:
    """Way to read masks, and the meaning of their ids in training where no option says otherwise."""
    known = cast("LayoutName", saved.fitted.get("layout") or "folder")
    known_ids = saved.fitted.get("ids")
    source = DataSource(
        data, layout or known, class_map, bool(reduce_zero_label), 255 if ignore_label is None else ignore_label
    )
    is_given = (class_map, reduce_zero_label, ignore_label) != (None, None, None)
    if is_given or known_ids is None or source.layout != known:
        return source, None
    return source, ClassMap(dict(known_ids))


def _check_classes(trained: Sequence[str], found: Sequence[str]) -> None:
    if list(trained) == list(found):
        return
    if len(trained) != len(found):
        raise UserError(f"this head tells {len(trained)} classes apart, the data set has {len(found)}; see --class_map")
    index = next(index for index in range(len(found)) if trained[index] != found[index])
    raise UserError(
        f"class {index} of this head is '{trained[index]}', of the data set '{found[index]}'; see --class_map"
    )
