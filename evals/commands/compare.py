"""`sail compare`: several backbones on the same images, with the same probes and the same dense head."""

from pathlib import Path
from typing import Any, Literal

from evals.compare_options import check_place, choose_heads, name_models, resolve_models
from evals.datasets.loading import load_dataset
from evals.datasets.splits import split_each_seed
from evals.options import parse_probes
from evals.segmentation.pairs import LayoutName
from sail_encoder.backbones.registry import announce, check_features
from sail_encoder.backbones.spec import VectorPooling
from sail_encoder.io.devices import check_device
from sail_encoder.io.errors import UserError, require_positive


def compare(
    data: str,
    models: str,
    out: str,
    random_weights: str | None = None,
    probes: str | dict[str, dict[str, Any] | None] | None = None,
    layers: str = "-1",
    norm: bool = True,
    fuse: Literal["concat", "mean"] = "concat",
    pool: VectorPooling = "mean",
    resize: str = "auto",
    max_tokens: int | None = None,
    store_dtype: Literal["float16", "float32"] = "float16",
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device: str = "auto",
    labels: str | None = None,
    label_column: str | None = None,
    task: Literal["classification", "multilabel", "regression"] = "classification",
    val_share: float = 0.1,
    test_share: float = 0.2,
    seeds: int = 1,
    masks: str | None = None,
    layout: LayoutName = "folder",
    head: str = "linear",
    crop: str | int = 112,
    steps: int = 400,
    batch_size: int = 16,
    learning_rate: float = 1e-3,
    cache_gb: float = 50.0,
    pictures: int = 4,
    latex: bool = False,
) -> int:
    """Compares backbones on the same images: probes, a dense head, speed and pictures.

    One table has a row per backbone; chart.png shows it, and pca.png the principal components of the same images, those
    of further backbones turned to agree best with the first. Killed or stopped, the same command goes on where it was;
    features and results are used again, also with more models or other probes. Where configs/compare has a file with
    the name of the data, its settings hold unless others are given.

    Args:
        data: Labelled images for the probes: digits, scenes, a folder of images in folders of classes, a table, shards,
            ...; as in sail probe.
        models: Backbones separated by commas: sail-tiny, folders, Hub names such as ByteDance-Seed/SAIL-7B, timm/NAME,
            hf/NAME, raw/14.
        out: Folder for features, heads, results.json, results.md, chart.png and pca.png.
        random_weights: Those of the models, separated by commas, whose weights are left random; they are the same every
            time.
        probes: Names separated by commas; in a file also their settings. By default logistic (ridge for regression)
            and knn.
        layers: Blocks to take features from, in each model: -1, 0,11,23, all, last4 or even4.
        norm: Whether to apply each model's final norm.
        fuse: What probes do with several layers: one after the other (concat), or their mean.
        pool: What becomes the vector that probes see: mean, max or generalized mean (gem) of the patches, the class
            token (cls), or that followed by the mean (cls_mean).
        resize: Each model's own rule (auto), or one for all: native, short512 (the shorter side), a side such as 224,
            or 448x672.
        max_tokens: Patches per image at most under the native rule.
        store_dtype: Type in which features are stored.
        precision: Precision of the backbones; auto is bfloat16 on a GPU and float32 on a CPU.
        device: auto (a GPU where there is one), cpu, cuda:1, ...
        labels: For ImageNet its devkit or a list of synsets.
        label_column: Column of the labels in tables and shards.
        task: Kind of the labels in tables and shards.
        val_share: Share of the training set to choose hyper-parameters on, where the data has none.
        test_share: Share to test on, where the data has no test set.
        seeds: How many times to run the probes, each with another validation set and other random numbers.
        masks: Data set for the dense head, as in sail segment train; also scenes or scenes-several. Without it there is
            no dense head.
        layout: How the data set of the masks is laid out.
        head: Dense head: linear, upernet, or knn.
        crop: Side of its training crops in pixels, whole patches of every model, or 448x672.
        steps: Batches to train it on.
        batch_size: Crops in a batch.
        learning_rate: Its highest learning rate.
        cache_gb: What the cached grids of a model may take on disk, in GB.
        pictures: Images of the test set on the sheet of principal components.
        latex: Whether to write the table as results.tex too.

    Returns:
        Exit status: 0 done, 1 done although some images could not be read, 130 or 143 stopped by a signal.
    """
    asked = dict(locals())
    folder, named = Path(out), name_models(models, random_weights)
    check_device(device)
    check_features(layers, resize, max_tokens)
    require_positive("pictures", pictures)
    check_place(folder)
    chosen = None if probes is None else parse_probes(probes)
    dataset = load_dataset(data, labels, label_column, task)
    chosen = chosen or parse_probes("ridge,knn" if dataset.task == "regression" else "logistic,knn")
    splits = split_each_seed(dataset, val_share, test_share, seeds)
    wanted = resolve_models(named, asked)
    if masks is None and layout != "folder":
        raise UserError(f"--layout {layout} has no effect without --masks; name the data set of the masks too")
    heads = choose_heads(wanted, asked) if masks is not None else {}
    announce("torch")
    from evals.compare import Comparison

    return Comparison(folder, dataset, splits, chosen, heads, asked).run(wanted)
