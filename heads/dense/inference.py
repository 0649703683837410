"""From images to label maps of their own size: whole or by sliding windows, mirrored, at several scales."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from heads.dense import PADDING
from heads.dense.registry import Fit
from heads.dense.segmenter import Segmenter
from heads.dense.upsampling import add_probabilities, most_likely, most_voted
from sail_encoder.backbones.batch import Prepared
from sail_encoder.extraction.loader import PackedLoader
from sail_encoder.images.decoding import Array
from sail_encoder.images.resizing import Resize, Size
from sail_encoder.io.errors import UserError
from sail_encoder.io.threads import map_ahead

T = TypeVar("T")

_IMAGES_AHEAD_PER_READER = 2
_NO_LIMIT = 2**31


@dataclass(frozen=True)
class Inference:
    """Way from an image to a label map.

    Attributes:
        resize: The size at which the image is looked at; with windows its limit of tokens does not apply.
        window: (height, width) of the windows in pixels, whole patches; None looks at the image as a whole.
        stride: How far a window is from the next, in pixels.
        scales: Factors on the size; the probabilities of all are averaged.
        flip: Whether the mirrored image is looked at too.
        fit: How sides that patches do not tile are brought to whole patches: by enlarging the image (`resize`, as
            InternVL), or by a border at the bottom and at the right of a tile (`pad`). Windows of whole patches on an
            image that is no smaller need no border, which is DINOv3's way.
    """

    resize: Resize
    window: Size | None = None
    stride: Size | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    fit: Fit = "resize"

    def __str__(self) -> str:
        words = [f"at size {self.resize}"]
        if self.window is not None and self.stride is not None:
            words.append("windows of {}x{} every {}x{} pixels".format(*self.window, *self.stride))
        if self.scales != (1.0,):
            words.append(f"scales {', '.join(f'{scale:g}' for scale in self.scales)}")
        if self.fit == "pad":
            words.append("padded to whole patches")
        return ", ".join([*words, *(["mirrored too"] if self.flip else [])])


@dataclass(frozen=True, eq=False)
class Tile:
    """A part of a view that the model sees at once.

    Attributes:
        view: Which view of its image it belongs to.
        top: Where it lies in the view, in pixels.
        left: Likewise.
        size: (height, width) of the part in pixels.
        pixels: uint8 [height, width, 3], what is to be seen: the part, and a border where it is not whole patches.
    """

    view: int
    top: int
    left: int
    size: Size
    pixels: Array

    @property
    def has_border(self) -> bool:
        """Tells whether it is larger than the part."""
        return self.pixels.shape[:2] != self.size


class Canvas:
    """One image on its way to a label map: its tiles, and what is known of each view so far.

    A view is the image at one scale, mirrored or not.

    Args:
        image: 8-bit RGB.
        inference: How to look at it.
        patch_size: Side of a patch in pixels.
        resample: The filter with which to resize.
    """

    def __init__(self, image: Image.Image, inference: Inference, patch_size: int, resample: Image.Resampling) -> None:
        self.size: Size = (image.height, image.width)
        self.sizes: list[Size] = []
        self.flipped: list[bool] = []
        self.tiles: list[Tile] = []
        for scale in inference.scales:
            resized = image.resize(_scaled(self.size, inference, patch_size, scale)[::-1], resample)
            for flipped in (False, True)[: 1 + inference.flip]:
                self._add_view(np.asarray(resized)[:, :: -1 if flipped else 1], flipped, inference, patch_size)
        self.missing = len(self.tiles)
        self.tiles_missing = Counter(tile.view for tile in self.tiles)
        # A view that one tile covers stays a map of patches, all others become maps of pixels.
        self.of_pixels = {tile.view for tile in self.tiles if tile.has_border or tile.size != self.sizes[tile.view]}
        self.sums: dict[int, Tensor] = {}
        self.weights: dict[int, Tensor] = {}
        self.adds_up = self._is_smaller_added_up()
        self.total: Tensor | None = None

    def _add_view(self, pixels: Array, flipped: bool, inference: Inference, p: int) -> None:
        size = (pixels.shape[0], pixels.shape[1])
        window = inference.window or size
        height, width = min(window[0], size[0]), min(window[1], size[1])
        stride = inference.stride or (height, width)
        for top in window_starts(size[0], height, stride[0]):
            for left in window_starts(size[1], width, stride[1]):
                part = _with_border(pixels[top : top + height, left : left + width], p)
                self.tiles.append(Tile(len(self.sizes), top, left, (height, width), part))
        self.sizes.append(size)
        self.flipped.append(flipped)

    def add(self, tile: Tile, logits: Tensor) -> None:
        """Takes the logits [classes, h, w] of a tile; where tiles overlap, they are averaged."""
        self._place(tile, logits)
        self.missing -= 1
        self.tiles_missing[tile.view] -= 1
        if self.adds_up and not self.tiles_missing[tile.view]:
            self._add_up(tile.view)

    def _place(self, tile: Tile, logits: Tensor) -> None:
        if tile.view not in self.of_pixels:
            self.sums[tile.view] = logits
            return
        if tile.view not in self.sums:
            self.sums[tile.view] = logits.new_zeros(len(logits), *self.sizes[tile.view])
            self.weights[tile.view] = logits.new_zeros(self.sizes[tile.view])
        height, width = tile.size
        rows, columns = slice(tile.top, tile.top + height), slice(tile.left, tile.left + width)
        enlarged = F.interpolate(logits[None], tile.pixels.shape[:2], mode="bilinear")[0]
        self.sums[tile.view][:, rows, columns] += enlarged[:, :height, :width]
        self.weights[tile.view][rows, columns] += 1

    def labels(self) -> Tensor:
        """The class of each pixel of the original image, uint8 [height, width]."""
        if self.total is not None:
            return most_voted(self.total)
        return most_likely([self._view(index) for index in range(len(self.sizes))], self.size)

    def _is_smaller_added_up(self) -> bool:
        """Tells whether the sum of all views and one of them take less memory than all of them beside each other.

        It does not where the image is much larger than its views. Maps of patches take next to nothing.
        """
        windowed = [self.sizes[view][0] * self.sizes[view][1] for view in self.of_pixels]
        return self.size[0] * self.size[1] + max(windowed, default=0) < sum(windowed)

    def _add_up(self, index: int) -> None:
        """Adds a complete view to the sum of probabilities, and lets go of it."""
        view = self._view(index)
        if self.total is None:
            self.total = view.new_zeros(*self.size, len(view))
        add_probabilities(self.total, view)
        del self.sums[index]
        self.weights.pop(index, None)

    def _view(self, index: int) -> Tensor:
        logits = self.sums[index]
        if index in self.weights:
            logits = logits / self.weights[index]
        return logits.flip(2) if self.flipped[index] else logits


def _scaled(size: Size, inference: Inference, patch_size: int, scale: float) -> Size:
    """The size of a view in pixels: whole patches, or what the rule asks for where tiles get a border."""
    rule = inference.resize if inference.window is None else replace(inference.resize, max_tokens=_NO_LIMIT)
    if inference.fit == "pad":
        height, width = rule.pixels(size, scale)
        if -(-height // patch_size) * -(-width // patch_size) <= rule.max_tokens:
            return height, width
    rows, columns = rule.grid(size, patch_size)
    return max(1, round(rows * scale)) * patch_size, max(1, round(columns * scale)) * patch_size


def _with_border(part: Array, p: int) -> Array:
    """Pixels [height, width, 3], filled up to whole patches at the bottom and at the right."""
    height, width = part.shape[:2]
    if height % p == 0 and width % p == 0:
        return part
    filled = np.empty((-(-height // p) * p, -(-width // p) * p, 3), np.uint8)
    filled[:] = PADDING
    filled[:height, :width] = part
    return filled


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Starts of windows that cover a length: every stride, the last one moved back to end with it."""
    return sorted({min(start, length - window) for start in range(0, length - window + stride, stride)})


def predict(
    segmenter: Segmenter, inference: Inference, items: Iterable[T], read: Callable[[T], Image.Image]
) -> Iterator[Tensor]:
    """Predicts label maps, one an item and in their order.

    Images are read and cut in threads, a few ahead; tiles of many images share a forward pass.

    Args:
        segmenter: The model.
        inference: How to look at an image.
        items: What `read` takes.
        read: Gives the image of an item, 8-bit RGB; called in threads.

    Yields:
        uint8 [height, width] on the model's device, of the original image's size.
    """
    backbone = segmenter.backbone
    resample = Image.Resampling[backbone.spec.resample]

    def open_canvas(item: T) -> Canvas:
        return Canvas(read(item), inference, backbone.patch_size, resample)

    def prepare(placed: tuple[Canvas, Tile]) -> Prepared:
        return backbone.prepare(placed[1].pixels, Resize(placed[1].pixels.shape[:2]))

    segmenter.head.eval()
    loader = PackedLoader(backbone, prepare)
    with ThreadPoolExecutor(loader.readers, "open") as pool:
        canvases = map_ahead(open_canvas, items, pool, _IMAGES_AHEAD_PER_READER * loader.readers)
        tiles = ((canvas, tile) for canvas in canvases for tile in canvas.tiles)
        with closing(loader.run([tiles], segmenter.logits)) as groups:
            for group, _, logits in groups:
                if logits is None:
                    raise UserError(f"{group[0].error}; use smaller --window")
                yield from _finish([one.item for one in group], logits)


def _finish(group: Sequence[tuple[Canvas, Tile]], logits: Sequence[Tensor]) -> Iterator[Tensor]:
    """Hands out logits to their canvases, and returns the label maps of those that are complete."""
    for (canvas, tile), values in zip(group, logits, strict=True):
        canvas.add(tile, values)
        if not canvas.missing:
            yield canvas.labels()
