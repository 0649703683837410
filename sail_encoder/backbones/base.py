"""The contract that every vision backbone fulfils: images in, feature grids out."""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from sail_encoder.backbones.features import Features
from sail_encoder.backbones.layers import LayerSpec, resolve_layers
from sail_encoder.backbones.packing import Pack, pack_consecutive
from sail_encoder.images.pixels import ImageLike, PatchedImage, patch_image, patchify_batch
from sail_encoder.images.resizing import Resize, Size
from sail_encoder.io.errors import UserError

_CPU_PASS_BYTES = 40 * 2**20


@dataclass(frozen=True, eq=False)
class Encoded:
    """Hidden states of packed images.

    Attributes:
        patches: For each layer [total patches, C].
        class_tokens: For each layer [images, C], empty where the backbone has no class token.
    """

    patches: dict[int, Tensor]
    class_tokens: dict[int, Tensor] = field(default_factory=dict)


class VisionBackbone(ABC):
    """A frozen model that turns images of any size into grids of features.

    Attributes:
        name: What it was loaded as.
        patch_size: Side of a patch in pixels.
        embed_dim: Channels of a feature.
        num_layers: Blocks that are loaded; layers count from 0 to `num_layers - 1`.
        has_class_token: Whether it has a class token beside the patches.
        resize: How images are brought to size unless told otherwise.
        resample: The filter with which they are resized.
        image_mean: Mean of each channel that is subtracted from pixels in [0, 1].
        image_std: What they are divided by then.
    """

    name: str
    patch_size: int
    embed_dim: int
    num_layers: int
    has_class_token: bool = False
    resize: Resize
    resample: Image.Resampling = Image.Resampling.BILINEAR
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the weights are."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Precision of weights and features."""

    @abstractmethod
    def forward_patches(self, pixel_values: Tensor, grids: Sequence[Size], layers: Collection[int]) -> Encoded:
        """Encodes packed images, without the final norm.

        Args:
            pixel_values: [total patches, 3 * patch_size**2], normalised, on the backbone's device.
            grids: Rows and columns of each image.
            layers: Block indices; nothing beyond the deepest is computed.
        """

    @abstractmethod
    def final_norm(self, states: Tensor) -> Tensor:
        """The model's final norm of hidden states [..., C]."""

    @abstractmethod
    def named_weights(self, last_layer: int) -> Iterable[tuple[str, Tensor]]:
        """Every weight that the normed output of block `last_layer` depends on, under names that do not change."""

    def constants(self) -> dict[str, Any]:
        """What features depend on beside the weights and the normalisation of pixels, as JSON."""
        return {}

    @abstractmethod
    def bytes_per_token(self) -> int:
        """Memory that a token needs on its way through a block, as an estimate."""

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
            images: A list of paths, PIL images, arrays [height, width, 3] or tensors [3, height, width].
            layers: Which blocks, see `sail_encoder.backbones.layers.LayerSpec`.
            norm: Whether to apply the model's final norm; without it the raw residual stream is returned.
            resize: A rule, or its text form (`native`, `short512`, `224`, `448x672`); the backbone's own by default.
            exif_rotate: Whether to turn photographs upright as their EXIF orientation says.
            token_budget: Patches in one forward pass; by default what memory allows.

        Returns:
            One `Features` an image, on the backbone's device.

        Raises:
            ImageError: If an image cannot be read.
            UserError: If a layer does not exist, the resize rule is not understood, or one image comes without a list.
        """
        _require_several(images)
        indices = resolve_layers(layers, self.num_layers)
        rule = resize if isinstance(resize, Resize) else self.resize.override(resize, None)
        prepared = (self.prepare(image, rule, exif_rotate) for image in images)
        budget = token_budget or self.default_token_budget()
        groups = pack_consecutive(prepared, lambda image: len(image.patches), budget)
        return [features for group in groups for features in self._encode_images(group, indices, norm)]

    def prepare(self, image: ImageLike, resize: Resize, exif_rotate: bool = False) -> PatchedImage:
        """Reads, resizes and cuts one image, without touching the device; may run in any thread.

        Raises:
            ImageError: If the image cannot be read.
        """
        return patch_image(image, resize, self.patch_size, exif_rotate, self.resample)

    def _encode_images(self, images: Sequence[PatchedImage], layers: Sequence[int], norm: bool) -> list[Features]:
        pack = Pack.of(images)
        encoded = self.encode_packed(pack, layers, norm)
        grids = {layer: pack.split(encoded.patches[layer]) for layer in layers}
        tokens = {layer: pack.unsort(list(states)) for layer, states in encoded.class_tokens.items()}
        return [
            Features(
                {layer: grids[layer][index] for layer in layers},
                image.image_size,
                image.resized_size,
                self.patch_size,
                self.num_layers,
                {layer: states[index] for layer, states in tokens.items()},
            )
            for index, image in enumerate(images)
        ]

    @torch.no_grad()
    def encode_packed(self, pack: Pack, layers: Sequence[int], norm: bool = True) -> Encoded:
        """Encodes packed images in one forward pass; what comes back is packed too."""
        patches = pack.patches.to(self.device, non_blocking=self.device.type == "cuda")
        return self._encode(self.normalize(patches), pack.grids, layers, norm)

    def normalize(self, patches: Tensor) -> Tensor:
        """uint8 patches [n, 3 * p * p] to what the model takes, in float32."""
        area = self.patch_size**2
        mean, std = (
            torch.tensor(channels, device=patches.device).repeat_interleave(area)
            for channels in (self.image_mean, self.image_std)
        )
        return (patches.float() / 255 - mean) / std

    def default_token_budget(self) -> int:
        """Patches per forward pass: half of the free memory of a GPU; on a CPU about what its caches hold.

        Larger passes are slower on a CPU, because what goes from one operation to the next has to come from memory; and
        what a kill loses, and how long an interrupted run takes to end, is one pass. A GPU's is a power of two, so that
        a run that goes on with a little more or less memory packs its images as before.
        """
        if self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            fitting = max(1, free // 2 // self.bytes_per_token())
            return max(1024, min(65536, 1 << fitting.bit_length() - 1))
        return max(1024, min(8192, _CPU_PASS_BYTES // self.bytes_per_token()))

    def _encode(self, pixel_values: Tensor, grids: Sequence[Size], layers: Collection[int], norm: bool) -> Encoded:
        encoded = self.forward_patches(pixel_values, grids, layers)
        return self._normed(encoded, layers) if norm else encoded

    def _normed(self, encoded: Encoded, layers: Iterable[int]) -> Encoded:
        tokens = encoded.class_tokens
        return Encoded(
            {layer: self.final_norm(encoded.patches[layer]) for layer in layers},
            {layer: self.final_norm(tokens[layer]) for layer in layers if layer in tokens},
        )

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
            One entry a block.
        """
        layers = resolve_layers(f"last{n}" if isinstance(n, int) else n, self.num_layers)
        encoded = self._encode_batch(pixel_values, layers, norm)
        patches = self._unpack_batch(encoded, pixel_values, layers, "NCHW" if reshape else "NLC")
        if not return_class_token:
            return tuple(patches)
        if not self.has_class_token:
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
        encoded = self._encode_batch(x, {*layers, last}, norm=False)
        wanted = self._normed(encoded, layers) if norm else encoded
        intermediates: list[Any] = self._unpack_batch(wanted, x, layers, output_fmt)
        if return_prefix_tokens and self.has_class_token:
            prefixes = (wanted.class_tokens[layer][:, None] for layer in layers)
            intermediates = list(zip(intermediates, prefixes, strict=True))
        if intermediates_only:
            return intermediates
        return self.final_norm(self._unpack_batch(encoded, x, [last], "NLC")[0]), intermediates

    def _encode_batch(self, x: Tensor, layers: Collection[int], norm: bool) -> Encoded:
        patches, grid = patchify_batch(x.to(self.device), self.patch_size)
        return self._encode(patches, [grid] * len(x), layers, norm)

    def _unpack_batch(self, encoded: Encoded, x: Tensor, layers: Iterable[int], output_fmt: str) -> list[Tensor]:
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
        recipe = {"mean": self.image_mean, "std": self.image_std, "resample": self.resample.name, **self.constants()}
        digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode())
        for name, weight in self.named_weights(last_layer):
            sample = weight.detach().flatten()[:: max(1, weight.numel() // 512)].to("cpu", torch.bfloat16)
            digest.update(f"{name} {tuple(weight.shape)}".encode())
            digest.update(sample.contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]


def _require_several(images: Any) -> None:
    """Refuses what would be taken apart into its letters or rows."""
    one = isinstance(images, (str, bytes, os.PathLike, Image.Image)) or getattr(images, "ndim", 4) < 4
    if one:
        raise UserError(f"encode takes a list of images; for one image pass [{type(images).__name__}] in a list")
