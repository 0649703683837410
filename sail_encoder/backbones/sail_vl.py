"""SAIL-VL, SAIL-VL2, SAILViT and InternViT as vision backbones."""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from itertools import groupby, islice
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from sail_encoder.backbones.base import VisionBackbone, read_resized
from sail_encoder.backbones.batch import Batch, Encoded, Prepared
from sail_encoder.backbones.descriptions import sail_vl_spec_of
from sail_encoder.backbones.spec import BackboneSpec
from sail_encoder.images.decoding import ImageLike, read_image
from sail_encoder.images.geometry import Geometry
from sail_encoder.images.resizing import Resize, Size
from sail_encoder.images.tiling import choose_second_grid, cut_tiles
from sail_encoder.io.devices import send
from sail_encoder.io.errors import UserError
from sail_encoder.io.hub import find_checkpoint
from sail_encoder.models.sail_vl.checkpoint import (
    PROJECTOR,
    TOWER,
    load_tower,
    load_vision_model,
    open_sail_vl,
    random_tower,
    random_vision_model,
    read_config,
    tower_config,
)
from sail_encoder.models.sail_vl.configuration_sail_vl import SailVLConfig
from sail_encoder.models.sail_vl.modeling_sail_vl import SailVLVisionModel
from sail_encoder.models.sail_vl.modeling_sailvit import VisionTower
from sail_encoder.models.sail_vl.published import hub_name


class SailVLBackbone(VisionBackbone):
    """A tower of SAIL-VL, alone or with its projector.

    Under the published rule an image is squashed to a grid of square tiles, each is seen by itself, and their patches
    are put together into one grid again. With MSAC it is seen a second time under another grid, where the borders of
    tiles lie elsewhere, and the grid of features is the mean of both. Under any other rule the image is seen as a
    whole, with position embeddings that are interpolated to its grid.

    The views of an image are uint8 [views, 3, height, width]: its tiles row by row, those of the second grid, and last
    the thumbnail where it is asked for. Class tokens are left out, as the projector does.

    Args:
        spec: What it is.
        model: The tower, or the tower with the projector, in evaluation mode.
    """

    def __init__(self, spec: BackboneSpec, model: VisionTower | SailVLVisionModel) -> None:
        self.model = model
        self.projector = model if isinstance(model, SailVLVisionModel) else None
        self.tower: VisionTower = model if self.projector is None else self.projector.vision_model
        self.spec = spec if self.projector else replace(spec, num_layers=len(self.tower.blocks))

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def prepare(self, image: ImageLike, size: Resize, exif_rotate: bool = False) -> Prepared:
        if size.tile is None:
            resized, geometry = read_resized(image, self.spec, size, exif_rotate)
            return self._prepared([resized], geometry)
        rgb, orientation = read_image(image, exif_rotate)
        return self._tiled(rgb, size, orientation, with_thumbnail=False)

    def prepare_all(self, image: ImageLike, size: Resize, exif_rotate: bool = False) -> Prepared:
        if size.tile is None:
            return self.prepare(image, size, exif_rotate)
        rgb, orientation = read_image(image, exif_rotate)
        return self._tiled(rgb, size, orientation, with_thumbnail=True)

    def _tiled(self, rgb: Image.Image, size: Resize, orientation: int, with_thumbnail: bool) -> Prepared:
        side, image_size = size.tile or 0, (rgb.height, rgb.width)
        rows, columns = size.tiles(image_size)
        views, second = cut_tiles(rgb, (columns, rows), side), None
        if self.spec.second_grid:
            second = choose_second_grid(rgb.size, (columns, rows), size.max_tiles, side)[::-1]
            views += cut_tiles(rgb, second[::-1], side)
        # A grid of one tile is the thumbnail already.
        if with_thumbnail and (rows, columns) != (1, 1):
            views += cut_tiles(rgb, (1, 1), side)
        grid = self.spec.grid(image_size, size)
        resized = (rows * side, columns * side)
        return self._prepared(views, Geometry(image_size, resized, grid, orientation, (rows, columns), second))

    def _prepared(self, views: Sequence[Image.Image], geometry: Geometry) -> Prepared:
        pixels = np.stack([np.asarray(view).transpose(2, 0, 1) for view in views])
        p = self.tower.config.patch_size
        tokens = views[0].height // p * (views[0].width // p) + self.tower.num_class_tokens
        return Prepared(pixels, geometry, len(views) * tokens)

    def collate(self, items: Sequence[Prepared]) -> Batch:
        # Views of one size stand side by side, so that each size is one rectangular batch.
        order = sorted(range(len(items)), key=lambda index: items[index].views.shape[2:])
        runs = groupby(order, key=lambda index: items[index].views.shape[2:])
        views = (torch.from_numpy(np.concatenate([items[index].views for index in run])) for _, run in runs)
        counts = [len(items[index].views) for index in order]
        return Batch(tuple(views), [items[index].geometry for index in order], order, counts)

    @torch.no_grad()
    def forward(self, batch: Batch, layers: Collection[int], norm: bool = True) -> Encoded:
        views: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        for pixels in batch.views:
            encoded = self.forward_pixels(self.normalize(pixels), layers)
            states = (self.normed(encoded) if norm else encoded).patches
            rows = pixels.shape[2] // self.patch_size
            for layer in layers:
                views[layer] += rearrange(states[layer], "(v r c) d -> v r c d", v=len(pixels), r=rows)
        return _stitch(views, batch)

    def normalize(self, views: Tensor) -> Tensor:
        """Brings uint8 views [n, 3, height, width] to what the model takes, on its device, in float32."""
        pixels = send(views, self.device).float() / 255
        mean, std = (pixels.new_tensor(values)[:, None, None] for values in (self.spec.image_mean, self.spec.image_std))
        return (pixels - mean) / std

    def forward_pixels(self, pixel_values: Tensor, layers: Collection[int]) -> Encoded:
        states = self.tower.intermediate_states(pixel_values, layers)
        patches = {layer: hidden[:, self.tower.num_class_tokens :] for layer, hidden in states.items()}
        if self.projector is not None:
            patches = self._project(patches, pixel_values)
        return Encoded({layer: hidden.flatten(0, 1) for layer, hidden in patches.items()})

    def _project(self, states: dict[int, Tensor], pixel_values: Tensor) -> dict[int, Tensor]:
        """Input of the language model, from the states of the block that its projector was trained on."""
        last = self.num_layers - 1
        if states.keys() != {last}:
            raise UserError(f"projected features are those of layer {last} alone; leave --layers at -1")
        model, p = cast("SailVLVisionModel", self.projector), self.tower.config.patch_size
        hidden = states[last] if last < len(self.tower.blocks) - 1 else self.tower.final_norm(states[last])
        return {last: model.project(hidden, (pixel_values.shape[2] // p, pixel_values.shape[3] // p))}

    def final_norm(self, states: Tensor) -> Tensor:
        # Projected features are already normalised, where the model normalises.
        return states if self.projector is not None else self.tower.final_norm(states)

    def named_weights(self, last_layer: int) -> Iterable[tuple[str, Tensor]]:
        for name, weight in self.model.state_dict().items():
            block = re.search(r"(?:trunk\.blocks|encoder\.layers)\.(\d+)\.", name)
            if block is None or int(block[1]) <= last_layer:
                yield name, weight

    def constants(self) -> dict[str, Any]:
        names = ("model_type", "num_attention_heads", "image_size", "rms_norm_eps", "layer_norm_eps")
        config = self.tower.config
        found = {name: getattr(config, name) for name in names if hasattr(config, name)}
        if self.projector is None:
            return found
        return {**found, **{name: getattr(self.projector.config, name) for name in ("ps_version", "select_layer")}}

    def bytes_per_token(self) -> int:
        config = self.tower.config
        return (8 * config.hidden_size + 3 * config.intermediate_size) * self.dtype.itemsize


def _stitch(views: dict[int, list[Tensor]], batch: Batch) -> Encoded:
    """Puts the grids [rows, columns, C] of views together into one grid per image."""
    patches: dict[int, Tensor] = {}
    thumbnails: dict[int, list[Tensor]] = {}
    for layer, grids in views.items():
        rest = iter(grids)
        images = [list(islice(rest, count)) for count in batch.counts]
        pairs = list(zip(images, batch.geometries, strict=True))
        patches[layer] = torch.cat([_join(*pair).flatten(0, 1) for pair in pairs])
        small = [thumbnail for pair in pairs if (thumbnail := _thumbnail(*pair)) is not None]
        if len(small) == len(images):
            thumbnails[layer] = small
    return Encoded(patches, thumbnails=thumbnails)


def _thumbnail(views: Sequence[Tensor], geometry: Geometry) -> Tensor | None:
    """Grid of the whole image in one tile, None where the model did not see one."""
    if geometry.tiles == (1, 1):
        return views[0]
    tiles = sum(rows * columns for rows, columns in (geometry.tiles or (1, 1), geometry.second_tiles or (0, 0)))
    return views[-1] if len(views) > tiles else None


def _join(views: Sequence[Tensor], geometry: Geometry) -> Tensor:
    """Grid [nh, nw, C] of an image from those of its views.

    A second grid of tiles is brought to the first's patches (bilinear, in float32), and their mean is taken.
    """
    if geometry.tiles is None:
        return views[0]
    count = geometry.tiles[0] * geometry.tiles[1]
    first = _lay_out(views[:count], geometry.tiles)
    if geometry.second_tiles is None:
        return first
    rows, columns = geometry.second_tiles
    second = _lay_out(views[count : count + rows * columns], geometry.second_tiles)
    channels_first = rearrange(second.float(), "r c d -> 1 d r c")
    resized = F.interpolate(channels_first, size=first.shape[:2], mode="bilinear", align_corners=False)
    return ((first.float() + rearrange(resized, "1 d r c -> r c d")) / 2).to(first.dtype)


def _lay_out(tiles: Sequence[Tensor], grid: Size) -> Tensor:
    """Tiles [rows, columns, C], row by row, side by side."""
    return rearrange(torch.stack(list(tiles)), "(R K) r c d -> (R r) (K c) d", R=grid[0])


def load_sail_vl(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    layers: int | None = None,
    revision: str | None = None,
    pretrained: bool = True,
    **options: Any,
) -> SailVLBackbone:
    """Loads the tower of a SAIL-VL, or a SAILViT or InternViT alone, and no other weights; see `load_backbone`."""
    project = bool(options.get("project"))
    parts = (TOWER, PROJECTOR) if project else (TOWER,)
    folder = find_checkpoint(hub_name(name), revision, weights=pretrained, prefixes=parts)
    spec = sail_vl_spec_of(folder, name, **options)
    if project and layers not in (None, spec.num_layers):
        raise UserError(f"projected features are those of layer {spec.num_layers - 1} alone; leave --layers at -1")
    if pretrained:
        checkpoint = open_sail_vl(folder, parts)
        load = (
            load_vision_model(checkpoint, device, dtype) if project else load_tower(checkpoint, device, dtype, layers)
        )
        return SailVLBackbone(spec, load)
    config = read_config(folder)
    if project:
        return SailVLBackbone(spec, random_vision_model(cast("SailVLConfig", config), device, dtype))
    return SailVLBackbone(spec, random_tower(tower_config(config, layers), device, dtype))
