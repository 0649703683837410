"""The contract of a vision backbone: images in, grids of features out.

A family says how it sees an image (`prepare`), how images share a forward pass (`collate`), and runs it (`forward`).
All else is the same for every family and stands here.
"""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from copy import copy
from typing import Any, Literal

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from typing_extensions import Self

from sail_encoder.backbones.batch import Batch, Encoded, Prepared, group_consecutive
from sail_encoder.backbones.features import Features
from sail_encoder.backbones.layers import LayerSpec, resolve_layers
from sail_encoder.backbones.spec import BackboneSpec
from sail_encoder.images.decoding import ImageLike, read_image
from sail_encoder.images.geometry import Geometry
from sail_encoder.images.resizing import Resize
from sail_encoder.io.errors import UserError

_CPU_PASS_BYTES = 40 * 2**20


class VisionBackbone(ABC):
    """A frozen model that turns images of any size into grids of features.

    Attributes:
        spec: What it is: sizes, layers, tokens, normalisation.
    """

    spec: BackboneSpec

    @property
    def name(self) -> str:
        """Name that it was loaded as."""
        return self.spec.name

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.spec.patch_size

    @property
    def embed_dim(self) -> int:
        """Channels of a feature."""
        return self.spec.embed_dim

    @property
    def num_layers(self) -> int:
        """Blocks that are loaded; layers count from 0 to `num_layers - 1`."""
        return self.spec.num_layers

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device of the weights."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Precision of weights and features."""

    @abstractmethod
    def prepare(self, image: ImageLike, size: Resize, exif_rotate: bool = False) -> Prepared:
        """Reads one image, brings it to size and cuts it into views, without touching the device; in any thread.

        Raises:
            ImageError: If the image cannot be read.
            UserError: If patches do not tile the size.
        """

    def prepare_all(self, image: ImageLike, size: Resize, exif_rotate: bool = False) -> Prepared:
        """Prepares an image for `encode`, with views that are not for its grid, such as a thumbnail; see `prepare`."""
        return self.prepare(image, size, exif_rotate)

    @abstractmethod
    def collate(self, items: Sequence[Prepared]) -> Batch:
        """Brings images together for one forward pass, on the CPU; in any thread."""

    @abstractmethod
    def forward(self, batch: Batch, layers: Collection[int], norm: bool = True) -> Encoded:
        """Encodes a batch on the backbone's device.

        Args:
            batch: Images.
            layers: Block indices; nothing beyond the deepest is computed.
            norm: Whether to apply the model's final norm to each of them.
        """

    @abstractmethod
    def forward_pixels(self, pixel_values: Tensor, layers: Collection[int]) -> Encoded:
        """Encodes images of one size, without the final norm.

        Args:
            pixel_values: [n, 3, height, width], normalised, on the backbone's device.
            layers: Block indices; nothing beyond the deepest is computed.

        Raises:
            UserError: If patches do not tile the images, or the model does not take their size.
        """

    @abstractmethod
    def final_norm(self, states: Tensor) -> Tensor:
        """Applies the model's final norm to hidden states [..., C]."""

    @abstractmethod
    def named_weights(self, last_layer: int) -> Iterable[tuple[str, Tensor]]:
        """Every weight that the normed output of block `last_layer` depends on, under names that do not change."""

    @abstractmethod
    def bytes_per_token(self) -> int:
        """Memory that a token needs on its way through a block, as an estimate."""

    def constants(self) -> dict[str, Any]:
        """Values that features depend on beside the weights and the normalisation of pixels, as JSON."""
        return {}

    def encode(
        self,
        images: Sequence[ImageLike],
        layers: LayerSpec = -1,
        norm: bool = True,
        resize: Resize | str = "auto",
        exif_rotate: bool = False,
        token_budget: int | None = None,
    ) -> list[Features]:
        """Encodes images of any size.

        Images of any sizes share a forward pass, and none sees another.

        Args:
            images: A list of paths, URLs, PIL images, arrays [height, width, 3], tensors [3, height, width] or open
                files; see `read_image`.
            layers: Which blocks, see `sail_encoder.backbones.layers.LayerSpec`.
            norm: Whether to apply the model's final norm; without it the raw residual stream is returned.
            resize: A rule, or its text form (`native`, `short512`, `224`, `448x672`); the backbone's own by default.
            exif_rotate: Whether to turn photographs upright as their EXIF orientation says.
            token_budget: Patches in one forward pass; by default what memory allows.

        Returns:
            One `Features` per image, on the backbone's device.

        Raises:
            ImageError: If an image cannot be read.
            UserError: If a layer does not exist, the resize rule is not understood, or one image comes without a list.
        """
        _require_several(images)
        indices = resolve_layers(layers, self.num_layers)
        view = self.at(indices)
        size = resize if isinstance(resize, Resize) else view.spec.resize.override(resize, None)
        prepared = (view.prepare_all(image, size, exif_rotate) for image in images)
        budget = token_budget or view.default_token_budget()
        groups = group_consecutive(prepared, lambda item: item.cost, budget)
        return [features for group in groups for features in view._encode_group(group, indices, norm)]

    def at(self, layers: Collection[int]) -> Self:
        """This backbone with the patches and channels that some layers have; it shares the weights.

        Raises:
            UserError: If they differ between these layers.
        """
        view = copy(self)
        view.spec = self.spec.at(layers)
        return view

    @torch.no_grad()
    def _encode_group(self, group: Sequence[Prepared], layers: Sequence[int], norm: bool) -> list[Features]:
        batch = self.collate(group)
        encoded = self.forward(batch, layers, norm)
        grids = {layer: batch.split(encoded.patches[layer]) for layer in layers}
        tokens = {layer: batch.unsort(list(states)) for layer, states in encoded.class_tokens.items()}
        thumbnails = {layer: batch.unsort(grids) for layer, grids in encoded.thumbnails.items()}
        return [
            Features(
                {layer: grids[layer][index] for layer in layers},
                item.geometry,
                self.num_layers,
                {layer: states[index] for layer, states in tokens.items()},
                {layer: grids[index] for layer, grids in thumbnails.items()},
            )
            for index, item in enumerate(group)
        ]

    def default_token_budget(self) -> int:
        """Patches per forward pass: half of the free memory of a GPU; on a CPU about what its caches hold.

        Larger passes are slower on a CPU, because what goes from one operation to the next has to come from memory; and
        what a kill loses, and how long an interrupted run takes to end, is one pass. A GPU's is a power of two, so that
        a run that goes on with a little more or less memory groups its images as before.
        """
        if self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            fitting = max(1, free // 2 // self.bytes_per_token())
            return max(1024, min(65536, 1 << fitting.bit_length() - 1))
        return max(1024, min(8192, _CPU_PASS_BYTES // self.bytes_per_token()))

    def get_intermediate_layers(
        self,
        pixel_values: Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_class_token: bool = False,
        norm: bool = True,
    ) -> tuple[Any, ...]:
        """Outputs of several blocks for images of one size, with the meaning that DINOv2 gave this method.

        Args:
            pixel_values: [batch, 3, height, width], normalised; sides are multiples of the patch size.
            n: How many of the last blocks, or which blocks.
            reshape: Whether to return [batch, C, nh, nw] in place of [batch, nh * nw, C].
            return_class_token: Whether to return (patches, class token) pairs.
            norm: Whether to apply the model's final norm.

        Returns:
            One entry per block.
        """
        layers = resolve_layers(f"last{n}" if isinstance(n, int) else n, self.num_layers)
        view = self.at(layers)
        encoded = view.forward_pixels(pixel_values.to(self.device), layers)
        encoded = view.normed(encoded) if norm else encoded
        patches = view._unpack(encoded, pixel_values, layers, "NCHW" if reshape else "NLC")
        if not return_class_token:
            return tuple(patches)
        if not self.spec.has_class_token:
            raise UserError(f"{self.name} has no class token; call with return_class_token=False")
        return tuple(zip(patches, (encoded.class_tokens[layer] for layer in layers), strict=True))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: Literal["NCHW", "NLC"] = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Any] | tuple[Tensor, list[Any]]:
        """Outputs of several blocks for images of one size, with the meaning that timm gave this method.

        Args:
            x: [batch, 3, height, width], normalised; sides are multiples of the patch size.
            indices: How many of the last blocks, which blocks, or None for all.
            return_prefix_tokens: Whether each intermediate is a pair (patches, class token [batch, 1, C]), where the
                backbone has a class token.
            norm: Whether to apply the model's final norm to the intermediates.
            stop_early: Whether to end with the deepest of these blocks, whose output is then the final one.
            output_fmt: `NCHW` or `NLC`.
            intermediates_only: Whether to leave out the final output.

        Returns:
            The intermediates, or (final output [batch, nh * nw, C] after the norm, intermediates).
        """
        spec: LayerSpec = "all" if indices is None else f"last{indices}" if isinstance(indices, int) else indices
        layers = resolve_layers(spec, self.num_layers)
        last = max(layers) if stop_early or intermediates_only else self.num_layers - 1
        view = self.at({*layers, last})
        encoded = view.forward_pixels(x.to(self.device), {*layers, last})
        wanted = view.normed(encoded) if norm else encoded
        intermediates: list[Any] = view._unpack(wanted, x, layers, output_fmt)
        if return_prefix_tokens and self.spec.has_class_token:
            prefixes = (wanted.class_tokens[layer][:, None] for layer in layers)
            intermediates = list(zip(intermediates, prefixes, strict=True))
        if intermediates_only:
            return intermediates
        return view.final_norm(view._unpack(encoded, x, [last], "NLC")[0]), intermediates

    def normed(self, encoded: Encoded) -> Encoded:
        """Hidden states after the model's final norm."""
        return Encoded(
            {layer: self.final_norm(states) for layer, states in encoded.patches.items()},
            {layer: self.final_norm(states) for layer, states in encoded.class_tokens.items()},
        )

    def _unpack(self, encoded: Encoded, x: Tensor, layers: Iterable[int], output_fmt: str) -> list[Tensor]:
        patterns = {"NCHW": "(n r k) c -> n c r k", "NLC": "(n r k) c -> n (r k) c"}
        if output_fmt not in patterns:
            raise UserError(f"output_fmt '{output_fmt}' is unknown; use NCHW or NLC")
        rows, pattern = x.shape[2] // self.patch_size, patterns[output_fmt]
        return [rearrange(encoded.patches[layer], pattern, n=len(x), r=rows).contiguous() for layer in layers]

    def fingerprint(self, last_layer: int) -> str:
        """Names what the features of block `last_layer` depend on, but for layers, sizes and precision.

        That is the weights, how pixels are normalised, and what else the network computes with. The file format does
        not matter. A sample of each tensor is hashed, in bfloat16, so that float32 and bfloat16 have the same name too.
        """
        spec = self.spec
        recipe = {"mean": spec.image_mean, "std": spec.image_std, "resample": spec.resample, **self.constants()}
        digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode())
        for name, weight in self.named_weights(last_layer):
            sample = weight.detach().flatten()[:: max(1, weight.numel() // 512)].to("cpu", torch.bfloat16)
            digest.update(f"{name} {tuple(weight.shape)}".encode())
            digest.update(sample.contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]


def read_resized(image: ImageLike, spec: BackboneSpec, size: Resize, exif_rotate: bool) -> tuple[Image.Image, Geometry]:
    """Reads an image and brings it to whole patches.

    Returns:
        8-bit RGB of nh * patch_size by nw * patch_size pixels, and its geometry.

    Raises:
        ImageError: If the image cannot be read.
        UserError: If patches do not tile the size.
    """
    rgb, orientation = read_image(image, exif_rotate)
    rows, columns = size.grid((rgb.height, rgb.width), spec.patch_size)
    resized = (rows * spec.patch_size, columns * spec.patch_size)
    geometry = Geometry((rgb.height, rgb.width), resized, (rows, columns), orientation)
    return rgb.resize(resized[::-1], Image.Resampling[spec.resample]), geometry


def _require_several(images: Any) -> None:
    """Refuses what would be taken apart into its letters or rows."""
    one = isinstance(images, (str, bytes, os.PathLike, Image.Image)) or getattr(images, "ndim", 4) < 4
    if one or hasattr(images, "read") or not hasattr(images, "__iter__"):
        raise UserError(f"encode takes a list of images; for one image pass [{type(images).__name__}] in a list")
