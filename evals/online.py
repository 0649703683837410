"""Probes trained with augmented images: the backbone runs in the loop, in one process or in several.

Under torchrun or accelerate each process takes its share of every batch, and the heads' gradients are averaged, so
that the result does not depend on how many processes there are. A checkpoint is written now and then; the same command
goes on from it.
"""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from tqdm import tqdm

from evals.datasets.labelled import Array, DatasetError, LabelledImages
from evals.datasets.splits import Splits
from evals.features import FeatureSettings, slug
from evals.probing import ChooseOn, Result, build_probe, head_task, make_result, parts_for
from heads.contract import FeatureSource, HeadError
from heads.pooling import pool_grid
from heads.probe import Candidate
from heads.targets import TargetSpace
from heads.trained import TrainedProbe
from heads.training import BankTraining, HeadBank, effective, shuffled_batches
from sail_encoder.backbone import VisionBackbone
from sail_encoder.errors import ImageError
from sail_encoder.layers import resolve_layers
from sail_encoder.loading import load_backbone
from sail_encoder.packing import Pack
from sail_encoder.pixels import patch_image, read_image
from sail_encoder.resizing import Resize

CHECKPOINT_EVERY = 500
"""Steps between two checkpoints."""

RESIZE_SHARE = 256 / 224
"""For testing, the shorter side is brought to the crop times this before the center is cropped."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run.

    Attributes:
        rank: Number of this one.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def join(cls) -> "Processes":
        """Joins the others that torchrun or accelerate has started, if any."""
        count = int(os.environ.get("WORLD_SIZE", 1))
        if count == 1:
            return cls()
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        if not dist.is_initialized():
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        return cls(dist.get_rank(), count)

    def leave(self) -> None:
        """Parts from the others."""
        if self.count > 1:
            dist.destroy_process_group()

    def gather(self, part: Any) -> list[Any]:
        """What each process has, in order of rank."""
        parts = [part] * self.count
        if self.count > 1:
            dist.all_gather_object(parts, part)
        return parts

    def device(self, device: str) -> str:
        """The device of this process."""
        return f"cuda:{os.environ['LOCAL_RANK']}" if self.count > 1 and torch.cuda.is_available() else device


class CroppedImages(Dataset[tuple[Tensor | None, int]]):
    """Images brought to one size and cut into patches, augmented where they are for training.

    An item is asked for by the place of a sample and a number that decides its augmentation, so that neither the
    number of processes nor of workers, nor a resumed run, changes what comes.

    Args:
        dataset: The images.
        patch_size: Side of a patch in pixels.
        crop: Side of the crop in pixels.
        augment: Whether to take a random crop and flip it at random, or the center.
    """

    def __init__(self, dataset: LabelledImages, patch_size: int, crop: int, augment: bool) -> None:
        self.images = {image.key: image for image in dataset.images.images}
        self.keys, self.patch_size, self.resize = dataset.keys, patch_size, Resize((crop, crop))
        self.resize.grid((crop, crop), patch_size)
        bicubic = v2.InterpolationMode.BICUBIC
        steps: list[nn.Module] = [v2.Resize(round(crop * RESIZE_SHARE), bicubic), v2.CenterCrop(crop)]
        if augment:
            steps = [v2.RandomResizedCrop(crop, interpolation=bicubic), v2.RandomHorizontalFlip()]
        self.transform = v2.Compose(steps)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor | None, int]:
        place, salt = item
        try:
            image, _ = read_image(self.images[self.keys[place]].open())
        except (ImageError, OSError):
            return None, place
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(salt)
            cropped: Image.Image = self.transform(image)
        return torch.from_numpy(patch_image(cropped, self.resize, self.patch_size).patches), place


def collate(items: Sequence[tuple[Tensor | None, int]]) -> tuple[Tensor, Tensor]:
    """Patches [images, patches, 3 * p * p] of those that could be read, and their places."""
    good = [(patches, place) for patches, place in items if patches is not None]
    if not good:
        raise DatasetError(f"none of the {len(items)} images of a batch can be read")
    return torch.stack([patches for patches, _ in good]), torch.tensor([place for _, place in good])


class OnlineRun:
    """Trains probes with the backbone in the loop.

    Args:
        out: Folder of the run.
        dataset: Samples and targets.
        settings: Which features.
        crop: Side of the crops in pixels.
        choose_on: Where learning rates are chosen.
        workers: Processes that read images, for each process that trains.
    """

    def __init__(
        self,
        out: Path,
        dataset: LabelledImages,
        settings: FeatureSettings,
        crop: int,
        choose_on: ChooseOn,
        workers: int,
    ) -> None:
        self.out, self.dataset, self.settings, self.crop, self.choose_on = out, dataset, settings, crop, choose_on
        self.workers = workers
        self.processes = Processes.join()
        device = self.processes.device(settings.device)
        self.backbone: VisionBackbone = load_backbone(settings.model, device, settings.precision)
        self.layers = resolve_layers(settings.layers, self.backbone.num_layers)

    def run(self, name: str, options: dict[str, Any], splits: Splits, seed: int) -> Result:
        """Trains one probe and measures it.

        Raises:
            HeadError: If the probe is not trained by gradient descent.
        """
        started = time.perf_counter()
        probe = build_probe(name, options, head_task(self.dataset), seed, str(self.backbone.device))
        if not isinstance(probe, TrainedProbe):
            raise HeadError(f"{name} cannot see augmented images, since it is not trained step by step; use linear")
        train, val, test = parts_for(splits, self.choose_on)
        probe.targets_ = TargetSpace.of(self.dataset.targets[train], probe.task)
        bank = self._train(probe, train, seed)
        outputs, places = self._scores(probe, bank, val)
        encoded = probe.targets_.encode(self.dataset.targets[places])
        qualities = [probe.targets_.quality(probe.targets_.restore(one), encoded) for one in outputs]
        probe.keep(bank, [Candidate("lr", *pair) for pair in zip(probe.recipe.lrs, qualities, strict=True)])
        outputs, places = self._scores(probe, bank, test)
        scores = probe.targets_.restore(outputs[0])
        title = f"{self.settings.title}, online"
        result = make_result(probe, title, seed, scores, self.dataset.targets[places], started)
        if self.processes.rank == 0:
            probe.save(self.out / "heads" / slug(title) / f"{probe.kind}-seed{seed}", self._source(probe))
        return replace(result, left_out=len(test) - len(places))

    def _train(self, probe: TrainedProbe, index: Array, seed: int) -> HeadBank:
        dim = self.backbone.embed_dim * (len(self.layers) if self.settings.fuse == "concat" else 1)
        bank = probe.make_bank(dim, len(probe.recipe.lrs)).train()
        forward: Any = bank
        if self.processes.count > 1:
            if self.backbone.device.type == "cuda":
                nn.SyncBatchNorm.convert_sync_batchnorm(bank)
            forward = DistributedDataParallel(bank)
        recipe = effective(probe.recipe, len(index))
        steps = recipe.count_steps(len(index))
        training = BankTraining(bank, recipe, steps, probe.targets_.kind, forward)
        checkpoint = self.out / "online" / f"{probe.kind}-seed{seed}.pt"
        made_of = repr((probe.settings(), asdict(self.settings), self.crop, self.dataset.name, index.tolist()))
        done = training.restore(checkpoint, made_of)
        encoded = torch.as_tensor(probe.targets_.encode(self.dataset.targets[index]), device=self.backbone.device)
        row = {int(place): position for position, place in enumerate(index)}
        batches = list(shuffled_batches(len(index), recipe.batch_size, steps, seed))[done:]
        mine = [index[batch.numpy()][self.processes.rank :: self.processes.count].tolist() for batch in batches]
        salted = [[(place, hash((seed, done + step, place))) for place in batch] for step, batch in enumerate(mine)]
        quiet = True if self.processes.rank else None
        loader = self._load(salted, augment=True)
        for step, (patches, places) in enumerate(
            tqdm(loader, probe.kind, steps, initial=done, disable=quiet), done + 1
        ):
            where = torch.tensor([row[place] for place in places.tolist()], device=encoded.device)
            training.step(self._features(patches, probe.takes), encoded[where])
            if step % CHECKPOINT_EVERY == 0 and self.processes.rank == 0:
                training.save(checkpoint, made_of, step)
        return training.finish()

    def _load(self, batches: Sequence[Any], augment: bool) -> DataLoader[Any]:
        images = CroppedImages(self.dataset, self.backbone.patch_size, self.crop, augment)
        return DataLoader(images, batch_sampler=batches, num_workers=self.workers, collate_fn=collate)

    def _features(self, patches: Tensor, takes: str) -> Any:
        """What the heads take, of images [images, patches, 3 * p * p]; as many in one pass as memory allows."""
        side = self.crop // self.backbone.patch_size
        each = max(1, self.backbone.default_token_budget() // patches.shape[1])
        parts = []
        for some in patches.split(each):
            pack = Pack(some.flatten(0, 1), [(side, side)] * len(some), list(range(len(some))))
            encoded = self.backbone.encode_packed(pack, self.layers, self.settings.norm).patches
            states = [encoded[layer].float() for layer in self.layers]
            fused = torch.cat(states, 1) if self.settings.fuse == "concat" else torch.stack(states).mean(0)
            parts.append(fused)
        features = torch.cat(parts)
        if takes == "grids":
            return features, torch.full((len(patches),), patches.shape[1])
        grids = features.unflatten(0, (len(patches), -1))
        return torch.vmap(partial(pool_grid, how=self.settings.pool))(grids)

    @torch.no_grad()
    def _scores(self, probe: TrainedProbe, bank: HeadBank, index: Array) -> tuple[Array, Array]:
        """Scores float64 [heads, images, outputs] of the images that could be read, and their places."""
        bank.eval()
        mine = index[self.processes.rank :: self.processes.count]
        batches = [[(place, 0) for place in batch] for batch in _chunks(mine.tolist(), 256)]
        scores, places = [], []
        for patches, where in self._load(batches, augment=False):
            scores.append(bank(self._features(patches, probe.takes)).nan_to_num(0, 0, 0).double().cpu().numpy())
            places += where.tolist()
        gathered = self.processes.gather((scores, places))
        everything = np.concatenate([one for part, _ in gathered for one in part], 1)
        order = np.array([place for _, part in gathered for place in part])
        ascending = order.argsort()
        return everything[:, ascending], order[ascending]

    def _source(self, probe: TrainedProbe) -> FeatureSource:
        settings = self.settings
        return FeatureSource(
            backbone=settings.model,
            weights=self.backbone.fingerprint(max(self.layers)),
            layers=tuple(self.layers),
            norm=settings.norm,
            resize=f"{self.crop}x{self.crop}",
            pool="none" if probe.takes == "grids" else settings.pool,
            fuse=settings.fuse,
        )


def _chunks(items: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
