"""The contract that every vision backbone fulfils: images in, feature grids out."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from sail_encoder.devices import choose_device, choose_dtype
from sail_encoder.errors import UserError
from sail_encoder.features import Features
from sail_encoder.hub import TINY
from sail_encoder.layers import LayerSpec, resolve_layers
from sail_encoder.packing import Pack, pack_consecutive
from sail_encoder.pixels import ImageLike, PatchedImage, patch_image
from sail_encoder.resizing import Resize, Size

_CPU_PASS_FLOPS = 4e12


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
    def named_weights(self, depth: int) -> Iterable[tuple[str, Tensor]]:
        """Every weight that the normed output of block `depth` depends on, under names that do not change."""

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

        Images are packed, so what one gives does not depend on its neighbours.

        Args:
            images: Paths, PIL images, arrays [height, width, 3] or tensors [3, height, width].
            layers: Which blocks, see `sail_encoder.layers.LayerSpec`.
            norm: Whether to apply the model's final norm; without it the raw residual stream is returned.
            resize: A rule, or its text form (`native`, `short512`, `224`, `448x672`); the backbone's own by default.
            exif_rotate: Whether to turn photographs upright as their EXIF orientation says.
            token_budget: Patches in one forward pass; by default what memory allows.

        Returns:
            One `Features` an image, on the backbone's device.

        Raises:
            ImageError: If an image cannot be read.
            UserError: If a layer does not exist or the resize rule is not understood.
        """
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
                {layer: states[index] for layer, states in tokens.items()},
            )
            for index, image in enumerate(images)
        ]

    @torch.no_grad()
    def encode_packed(self, pack: Pack, layers: Sequence[int], norm: bool = True) -> Encoded:
        """Encodes packed images in one forward pass; what comes back is packed too."""
        patches = pack.patches.to(self.device, non_blocking=True)
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
        """Patches per forward pass: half of the free memory of a GPU; on a CPU what takes seconds, not minutes.

        A CPU rearranges the weights in every pass, so that larger passes are faster, but what a kill loses, and how
        long an interrupted run takes to end, is one pass.
        """
        if self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            return max(1024, min(65536, free // 2 // self.bytes_per_token()))
        parameters = sum(weight.numel() for _, weight in self.named_weights(self.num_layers - 1))
        return max(2048, min(8192, int(_CPU_PASS_FLOPS / (2 * parameters))))

    def _encode(self, pixel_values: Tensor, grids: Sequence[Size], layers: Collection[int], norm: bool) -> Encoded:
        encoded = self.forward_patches(pixel_values, grids, layers)
        if not norm:
            return encoded
        patches, class_tokens = (
            {layer: self.final_norm(state) for layer, state in states.items()}
            for states in (encoded.patches, encoded.class_tokens)
        )
        return Encoded(patches, class_tokens)

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
        norm: bool = False,
        output_fmt: Literal["NCHW", "NLC"] = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Outputs of several blocks for images of one size, with the meaning that timm gave this method.

        Args:
            x: [batch, 3, height, width], normalised; sides are multiples of the patch size.
            indices: How many of the last blocks, which blocks, or None for all.
            norm: Whether to apply the model's final norm to the intermediates.
            output_fmt: `NCHW` or `NLC`.
            intermediates_only: Whether to leave out the final output.

        Returns:
            The intermediates, or (final output [batch, nh * nw, C] after the norm, intermediates).
        """
        spec: LayerSpec = "all" if indices is None else f"last{indices}" if isinstance(indices, int) else indices
        layers = resolve_layers(spec, self.num_layers)
        if intermediates_only:
            return self._unpack_batch(self._encode_batch(x, layers, norm), x, layers, output_fmt)
        last = self.num_layers - 1
        encoded = self._encode_batch(x, {*layers, last}, norm=False)
        final = self.final_norm(self._unpack_batch(encoded, x, [last], "NLC")[0])
        if norm:
            encoded = Encoded({layer: self.final_norm(encoded.patches[layer]) for layer in layers})
        return final, self._unpack_batch(encoded, x, layers, output_fmt)

    def _encode_batch(self, x: Tensor, layers: Collection[int], norm: bool) -> Encoded:
        p = self.patch_size
        if x.ndim != 4 or x.shape[1] != 3 or x.shape[2] % p or x.shape[3] % p:
            raise UserError(f"a batch of shape {tuple(x.shape)} cannot be cut into patches; pass [n, 3, {p}*a, {p}*b]")
        patches = rearrange(x.to(self.device), "n c (r y) (k x) -> (n r k) (c y x)", y=p, x=p)
        return self._encode(patches, [(x.shape[2] // p, x.shape[3] // p)] * len(x), layers, norm)

    def _unpack_batch(self, encoded: Encoded, x: Tensor, layers: Iterable[int], output_fmt: str) -> list[Tensor]:
        rows = x.shape[2] // self.patch_size
        pattern = {"NCHW": "(n r k) c -> n c r k", "NLC": "(n r k) c -> n (r k) c"}[output_fmt]
        return [rearrange(encoded.patches[layer], pattern, n=len(x), r=rows).contiguous() for layer in layers]

    def fingerprint(self, depth: int) -> str:
        """Names the weights that block `depth` depends on: equal weights give equal names in any file format.

        A sample of each tensor is hashed, in bfloat16, so that the name does not change with the precision either.
        """
        digest = hashlib.sha256()
        for name, weight in self.named_weights(depth):
            sample = weight.detach().flatten()[:: max(1, weight.numel() // 512)].to("cpu", torch.bfloat16)
            digest.update(f"{name} {tuple(weight.shape)}".encode())
            digest.update(sample.contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]


def load_backbone(
    name: str = TINY,
    device: str = "auto",
    dtype: str = "auto",
    layers: int | None = None,
    revision: str | None = None,
    pretrained: bool = True,
    **token_ids: int,
) -> VisionBackbone:
    """Loads a vision backbone, and of its weights only what features need.

    Args:
        name: `sail-tiny`, a folder with a SAIL checkpoint (published or native format), its name on the Hugging Face
            Hub, `timm/` and the name of a timm model, or `raw/14` for raw patches of 14 pixels, as a baseline.
        device: `cpu`, `cuda`, `cuda:1`, `mps`; `auto` takes a GPU where there is one.
        dtype: `float32`, `bfloat16` or `float16`; `auto` is bfloat16 on a GPU and float32 on a CPU.
        layers: Load the first so many blocks alone; layers then count within these.
        revision: Branch, tag or commit on the Hub.
        pretrained: Whether to read the weights; without them the model is random, always with the same seed.
        token_ids: `vision_start_token_id`, `image_token_id`, `vision_end_token_id`, for a SAIL checkpoint that has
            neither a tokenizer nor the ids in its configuration.

    Returns:
        The backbone, in evaluation mode.

    Raises:
        CheckpointError: If the checkpoint cannot be found or used.
        UserError: If device, dtype or layers are not possible.
    """
    where = choose_device(device)
    precision = choose_dtype(dtype, where)
    if name.startswith("timm/"):
        from sail_encoder.timm_backbone import load_timm

        return load_timm(name, where, precision, layers, pretrained)
    if name.startswith("raw/"):
        from sail_encoder.raw_patches import load_raw

        return load_raw(name, where, precision, layers)
    from sail_encoder.sail.backbone import load_sail

    return load_sail(name, where, precision, layers, revision, pretrained, **token_ids)
