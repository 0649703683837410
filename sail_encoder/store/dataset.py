"""Stored features as a data set of PyTorch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sail_encoder.io.errors import StoreError
from sail_encoder.store.reading import FeatureFolder


class FeatureDataset(Dataset[tuple[Tensor, Any]]):
    """Features of a folder with what is to be learned from them, for a `DataLoader`.

    An item is (features, target): float32 [nh, nw, C], or [C] where they are pooled. Grids of images of different sizes
    need a `batch_size` of 1 or a `collate_fn` of your own.

    Args:
        folder: The `--out` of a run of `sail extract`, or what reads it.
        targets: For each image, by its name in the folder, what goes with it; images that are not named are left out.
            By default an image's name is its target.
        layer: One of the folder's layers; the last by default.

    Raises:
        StoreError: If the folder holds no finished run, or an image that is named has no features.
    """

    def __init__(
        self, folder: str | Path | FeatureFolder, targets: Mapping[str, Any] | None = None, layer: int | None = None
    ) -> None:
        self.folder = folder if isinstance(folder, FeatureFolder) else FeatureFolder(folder)
        self.layer, self.targets = layer, None if targets is None else list(targets.values())
        self.rows = np.arange(len(self.folder)) if targets is None else self.folder.entries.rows_of(list(targets))
        if targets is not None and (self.rows < 0).any():
            name = list(targets)[int((self.rows < 0).argmax())]
            raise StoreError(f"{self.folder.folder} has no features of '{name}', for which there is a target")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        entry = self.folder.entries[int(self.rows[index])]
        features = torch.from_numpy(self.folder.read(entry, self.layer).astype(np.float32))
        return features, entry.path if self.targets is None else self.targets[index]
