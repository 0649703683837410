"""Several backbones side by side: the same images, the same probes and the same dense head, one table and two pictures.

Features, results and heads are kept under names that say all that decides them, so that a run that was stopped goes on,
and one with more models or other probes uses what is there.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from evals.compare_options import COMMAND, DenseHeadChoice
from evals.compare_report import BackboneScores, write_comparison
from evals.datasets.labelled import LabelledImages
from evals.datasets.splits import Splits
from evals.errors import DatasetError
from evals.features import ImageFeatures, extract_features, slug
from evals.probe_report import describe_probing
from evals.probing import ProbeRun, check_probes
from evals.report import Facts
from evals.results import Result, ResultLog
from evals.segmentation.data import SegmentationData
from evals.segmentation.options import TrainOptions, check_head, open_data
from evals.segmentation.run_folders import RESULTS
from evals.segmentation.training import train_head
from sail_encoder.backbones.base import VisionBackbone
from sail_encoder.backbones.batch import Batch, Prepared
from sail_encoder.backbones.registry import announce, load_for
from sail_encoder.backbones.spec import FeatureSpec
from sail_encoder.extraction.loader import PackedLoader
from sail_encoder.images.decoding import read_image
from sail_encoder.io.devices import choose_device, choose_dtype
from sail_encoder.io.errors import ImageError
from sail_encoder.io.files import read_json
from sail_encoder.io.fingerprints import digest
from sail_encoder.io.json_lines import LineLog
from sail_encoder.io.runs import write_run
from sail_encoder.io.versions import versions
from sail_encoder.pictures.component_sheets import LayerGrids, draw_component_sheet
from sail_encoder.pictures.components import sheet_scores
from sail_encoder.pictures.overlays import Photo

TIMED = 64
"""Images of the test set on which speed is measured, and tokens are counted."""

PASSES = 3
"""Times that these are encoded; the fastest counts, since other work on the machine can only slow one down."""


class Comparison:
    """One comparison in its folder.

    Args:
        out: The folder.
        dataset: Labelled images.
        splits: One a seed.
        probes: Names and settings of the probes.
        heads: What is asked of the dense head on each backbone, by the name of the backbone; empty for none.
        asked: Options of the command.

    Raises:
        UserError: If a probe or the head cannot work on these.
    """

    def __init__(
        self,
        out: Path,
        dataset: LabelledImages,
        splits: Sequence[Splits],
        probes: Mapping[str, dict[str, Any]],
        heads: Mapping[str, DenseHeadChoice],
        asked: Mapping[str, Any],
    ) -> None:
        self.out, self.dataset, self.splits, self.probes, self.asked = out, dataset, splits, probes, asked
        self.device: str = asked["device"]
        self.built = check_probes(probes, dataset, splits, self.device)
        self.heads = heads
        for options, source, spec in heads.values():
            check_head(options, [spec.embed_dim] * len(source.layers))

    def run(self, wanted: Sequence[FeatureSpec]) -> int:
        """Measures all backbones, writes the report and the pictures, and prints the table.

        Returns:
            Exit status: 0 done, 1 where an image could not be read, 130 or 143 where a signal has stopped it.
        """
        write_run(self.out, COMMAND, {"settings": dict(self.asked), "versions": versions()})
        masks = open_data(self._head_options) if self.heads else None
        photos = self._read_photos()
        scores, seen = [], []
        for features in wanted:
            one, grids = self._measure(features, photos)
            if masks:
                status, mean_iou = self._train_head(one, masks)
                if status:
                    return status
                one = replace(one, mean_iou=mean_iou)
            scores.append(one)
            seen.append((features.title, grids))
        components = sheet_scores([list(grids.values()) for _, grids in seen])
        draw_component_sheet(components, None, photos, seen, self.out / "pca.png")
        print(write_comparison(self.out, scores, self.asked, self._protocol(scores, masks)))
        return int(any(result.left_out for one in scores for result in one.results))

    @property
    def _head_options(self) -> TrainOptions:
        """Options of the dense head, the same for all backbones but for the backbone itself."""
        return next(iter(self.heads.values()))[0]

    def _read_photos(self) -> list[Photo]:
        """Images of the test set, evenly spread; those that cannot be read are left out."""
        photos: list[Photo] = []
        for image in self._test_images(self.asked["pictures"]):
            try:
                photos.append((Path(image.key).name, read_image(image.open())[0]))
            except (ImageError, OSError) as error:
                reason = error.reason if isinstance(error, ImageError) else error
                print(f"{image.key} is not drawn: {reason}", file=sys.stderr)
        if not photos:
            raise DatasetError(f"none of the images of {self.dataset.name} that were to be drawn can be read")
        return photos

    def _test_images(self, count: int) -> list[Any]:
        known = {image.key: image for image in self.dataset.images.images}
        keys = list(dict.fromkeys(self.dataset.keys[row] for row in self.splits[0].test))
        chosen = np.linspace(0, len(keys) - 1, min(count, len(keys))).round().astype(int)
        return [known[keys[index]] for index in chosen]

    def _measure(self, wanted: FeatureSpec, photos: Sequence[Photo]) -> tuple[BackboneScores, LayerGrids]:
        """All that needs this backbone but for the dense head, which loads it when it is its turn."""
        announce(wanted.title)
        backbone = load_for(wanted, self.device)
        grids = any(probe.takes == "grids" for probe in self.built)
        features = extract_features(self.dataset, wanted, self.device, self.out / "features", grids, backbone)
        results = self._run_probes(features)
        parameters = backbone.spec.parameters(wanted.depth)
        scores = BackboneScores(features.spec, parameters, *self._speed(backbone, features.spec), results)
        return scores, _see(backbone, features.spec, photos)

    def _run_probes(self, features: ImageFeatures) -> list[Result]:
        with ResultLog(self.out) as log:
            run = ProbeRun(log, self.out, self.dataset, "validation", self.device)
            todo = [(name, seed) for name in self.probes for seed in range(len(self.splits))]
            bar = tqdm(todo, features.title, unit="probe", disable=None)
            return [run.run(name, self.probes[name], features, self.splits[seed], seed) for name, seed in bar]

    def _speed(self, backbone: VisionBackbone, features: FeatureSpec) -> tuple[float, float]:
        """The speed that was measured before, or is now; once measured it stays, so that a table stays what it is."""
        key = digest([features.to_json(), str(backbone.device), torch.get_num_threads(), self.dataset.name])
        with LineLog(self.out / "speed.jsonl") as log:
            known = {line["key"]: (line["tokens"], line["images_per_second"]) for line in log.read()}
            if key not in known:
                tokens, rate = known[key] = measure_speed(backbone, features, self._test_images(TIMED))
                log.append({"key": key, "model": features.title, "tokens": tokens, "images_per_second": rate})
        return known[key]

    def _train_head(self, one: BackboneScores, masks: Sequence[SegmentationData]) -> tuple[int, float | None]:
        """Exit status and mIoU of the dense head, trained unless it has been."""
        training, validation = masks
        options, source, spec = self.heads[one.features.model]
        settings = [
            options.decisive(training),
            one.features.weights,
            [str(sample.name) for sample in validation.samples],
        ]
        folder = self.out / "segmentation" / f"{slug(one.features.title)}-{digest(settings, 10)}"
        status = 0
        if not (folder / RESULTS).exists():
            status, _ = train_head(replace(options, out=str(folder)), source, spec, training, validation)
        return status, None if status else read_json(folder / RESULTS)["scores"]["mIoU"]

    def _protocol(self, scores: Sequence[BackboneScores], masks: Sequence[SegmentationData] | None) -> Facts:
        features = [one.features for one in scores]
        mode = "features that were extracted once, the same images for all"
        facts = list(describe_probing(self.dataset, self.splits, features, self.built, mode))
        if masks:
            options = self._head_options
            facts += [
                ("masks", f"{options.data}, {len(masks[0]):,} for training, {len(masks[1]):,} for mIoU"),
                (
                    "dense head",
                    f"{options.head}, cached features, crops of {options.crop} pixels, {options.steps:,} steps of "
                    f"{options.batch_size}, rate {options.learning_rate:g}, {options.optimizer}, {options.schedule}, "
                    f"seed {options.seed}",
                ),
            ]
        device = choose_device(self.device)
        dtype = str(choose_dtype(self.asked["precision"], device)).removeprefix("torch.")
        timed = min(TIMED, len(self.splits[0].test))
        threads = f" with {torch.get_num_threads()} threads" if device.type == "cpu" else ""
        passes = f"forward passes of {timed} images that were read before, the fastest of {PASSES}"
        passes = f"{passes}, {dtype} on {device}{threads}"
        return [*facts, ("tokens/image", "patches, of the same images"), ("images/s", passes)]


def _see(backbone: VisionBackbone, features: FeatureSpec, photos: Sequence[Photo]) -> LayerGrids:
    """Grids of images at the deepest layer that is asked for."""
    layer = max(features.layers)
    encoded = backbone.encode([image for _, image in photos], layers=[layer], norm=features.norm, resize=features.size)
    return {layer: [one.grid.float().cpu().numpy() for one in encoded]}


def measure_speed(backbone: VisionBackbone, features: FeatureSpec, images: Sequence[Any]) -> tuple[float, float]:
    """Measures forward passes alone, the fastest of a few after one that warms up.

    Args:
        backbone: The backbone.
        features: Which layers are computed, and at which size images are seen.
        images: Image files; those that cannot be read are left out.

    Returns:
        Patches per image on average, of all tiles, without class tokens and the like; and images per second in forward
        passes alone, since they were read and brought to size before.

    Raises:
        DatasetError: If none can be read.
    """
    prepared = []
    for image in images:
        with suppress(ImageError, OSError):
            prepared.append(backbone.prepare(image.open(), features.size, features.exif_rotate))
    if not prepared:
        raise DatasetError(f"none of the {len(images)} images on which speed is measured can be read")

    @torch.no_grad()
    def forward(batch: Batch) -> Tensor:
        encoded = backbone.forward(batch, features.layers, features.norm)
        # A value on the host is there when the device is done.
        return encoded.patches[max(features.layers)][:1].cpu()

    loader: PackedLoader[Prepared] = PackedLoader(backbone, lambda one: one)
    times = []
    for _ in range(1 + PASSES):
        started = time.perf_counter()
        for _ in loader.run([prepared], forward):
            pass
        times.append(time.perf_counter() - started)
    return sum(one.cost for one in prepared) / len(prepared), len(prepared) / min(times[1:])
