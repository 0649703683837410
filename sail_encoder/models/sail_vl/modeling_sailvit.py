"""The vision towers of SAIL-VL: SAILViT and InternViT.

Both cut an image into patches, add learned positions and run plain blocks of full attention. They differ in details:

              class token   norms       feed-forward   layer scale   final norm
  SAILViT     none          RMSNorm     SwiGLU         none          yes
  InternViT   first         LayerNorm   GELU           yes           none

SAILViT is AIMv2 (arXiv 2411.14402) trained further (arXiv 2507.01643). Modules carry the names of the published
checkpoints, so that these load as they are.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import AttentionInterface, GradientCheckpointingLayer, initialization
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from sail_encoder.io.errors import UserError
from sail_encoder.models.sail_vl.configuration_sail_vl import InternViTConfig, SailViTConfig
from sail_encoder.models.sail_vl.pretrained import PublishedPreTrainedModel

Grid = tuple[int, int]
"""Rows and columns of patches."""

# transformers looks for this name in the source before it changes a model's attention.
ALL_ATTENTION_FUNCTIONS = AttentionInterface()


def eager_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, scaling: float, **_: Any
) -> tuple[Tensor, Tensor]:
    """Attention that also returns its weights, [batch, heads, tokens, tokens], with softmax in float32."""
    weights = (query @ key.transpose(-2, -1) * scaling).softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2), weights


class TowerAttention(nn.Module):
    """Full attention of all tokens of an image to each other, with one projection for query, key and value."""

    is_causal = False

    def __init__(self, config: SailViTConfig | InternViTConfig, bias: bool) -> None:
        super().__init__()
        self.config = config
        self.heads = config.num_attention_heads
        self.scaling = (config.hidden_size // self.heads) ** -0.5
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size, bias=bias)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        query, key, value = rearrange(self.qkv(hidden), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        attended, weights = attend(self, query, key, value, None, scaling=self.scaling, is_causal=False)
        return self.proj(rearrange(attended, "b n h d -> b n (h d)")), weights


class SwiGLU(nn.Module):
    """Feed-forward network whose second branch `fc3` is gated by the first."""

    def __init__(self, width: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden, bias=bias)
        self.fc3 = nn.Linear(width, hidden, bias=bias)
        self.fc2 = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.silu(self.fc1(x)) * self.fc3(x))


class GeluMlp(nn.Module):
    """Feed-forward network of two layers."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SailViTBlock(GradientCheckpointingLayer):
    """Attention and SwiGLU, each after a norm and beside a residual."""

    def __init__(self, config: SailViTConfig) -> None:
        super().__init__()
        self.norm_1 = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attn = TowerAttention(config, bias=config.use_bias)
        self.norm_2 = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size, bias=config.use_bias)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attn(self.norm_1(hidden))[0]
        return hidden + self.mlp(self.norm_2(hidden))


class InternViTBlock(GradientCheckpointingLayer):
    """Attention and feed-forward network, each after a norm, scaled per channel, and beside a residual."""

    def __init__(self, config: InternViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.attn = TowerAttention(config, bias=True)
        self.ls1 = nn.Parameter(torch.full((config.hidden_size,), config.initializer_factor))
        self.norm2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = GeluMlp(config.hidden_size, config.intermediate_size)
        self.ls2 = nn.Parameter(torch.full((config.hidden_size,), config.initializer_factor))

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.ls1 * self.attn(self.norm1(hidden))[0]
        return hidden + self.ls2 * self.mlp(self.norm2(hidden))


def embed_patches(projection: nn.Conv2d, pixel_values: Tensor) -> tuple[Tensor, Grid]:
    """Projects patches.

    Args:
        projection: Convolution whose stride is its kernel.
        pixel_values: [batch, 3, rows * patch_size, columns * patch_size].

    Returns:
        [batch, rows * columns, hidden_size], and (rows, columns).

    Raises:
        UserError: If patches do not tile the images.
    """
    p, shape = projection.kernel_size[0], tuple(pixel_values.shape)
    if len(shape) != 4 or shape[1] != 3 or shape[2] % p or shape[3] % p or not shape[2] * shape[3]:
        raise UserError(f"a batch of shape {shape} cannot be cut into patches; pass [n, 3, {p}*a, {p}*b]")
    patches = projection(pixel_values.to(projection.weight.dtype))
    # Contiguous, or else every later residual keeps the convolution's order in memory.
    return rearrange(patches, "b c r k -> b (r k) c").contiguous(), (shape[2] // p, shape[3] // p)


def interpolate_positions(positions: Tensor, grid: Grid) -> Tensor:
    """Brings the position embeddings of a square grid to another grid.

    Bicubic with `align_corners=False`, in float32, as the published InternViT does. The published SAILViT takes the
    first rows * columns embeddings whatever the grid, which puts them in the wrong places.

    Args:
        positions: [1, side * side, hidden_size].
        grid: (rows, columns).

    Returns:
        [1, rows * columns, hidden_size].
    """
    side = round(positions.shape[1] ** 0.5)
    if grid == (side, side):
        return positions
    squares = rearrange(positions.float(), "1 (r k) c -> 1 c r k", r=side)
    resized = F.interpolate(squares, size=grid, mode="bicubic", align_corners=False)
    return rearrange(resized, "1 c r k -> 1 (r k) c").to(positions.dtype)


class VisionTower(PublishedPreTrainedModel, ABC):
    """Common part of both towers; `embed`, `blocks` and `final_norm` are their own.

    Attributes:
        num_class_tokens: Tokens in front of the patches.
    """

    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["SailViTBlock", "InternViTBlock"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": GradientCheckpointingLayer, "attentions": TowerAttention}
    # A tower can be taken out of a whole model.
    _keys_to_ignore_on_load_unexpected = [r"^mlp1\.", r"^language_model\."]

    num_class_tokens = 0

    @property
    @abstractmethod
    def blocks(self) -> nn.ModuleList:
        """Blocks in order."""

    @abstractmethod
    def embed(self, pixel_values: Tensor) -> Tensor:
        """Tokens [batch, num_class_tokens + rows * columns, hidden_size] that enter the first block."""

    def final_norm(self, hidden: Tensor) -> Tensor:
        """Applies the tower's own final norm, where it has one."""
        return hidden

    def residual_stream(self, pixel_values: Tensor) -> Iterator[Tensor]:
        """Runs images block by block, as far as the result is read.

        Args:
            pixel_values: [batch, 3, rows * patch_size, columns * patch_size], normalised.

        Yields:
            The embedding, then the output of each block in turn, without the final norm,
            [batch, num_class_tokens + rows * columns, hidden_size].
        """
        hidden = self.embed(pixel_values)
        yield hidden
        for block in self.blocks:
            hidden = block(hidden)
            yield hidden

    def intermediate_states(self, pixel_values: Tensor, layers: Collection[int]) -> dict[int, Tensor]:
        """Runs images up to the deepest requested layer.

        Args:
            pixel_values: [batch, 3, rows * patch_size, columns * patch_size], normalised.
            layers: Blocks whose output to return, from 0 to `num_hidden_layers - 1`.

        Returns:
            For each layer [batch, num_class_tokens + rows * columns, hidden_size], without the final norm.
        """
        stream = self.residual_stream(pixel_values)
        next(stream)
        states = {}
        for layer in range(max(layers) + 1):
            hidden = next(stream)
            if layer in layers:
                states[layer] = hidden
        return states

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, pixel_values: Tensor, select_layer: int = -1, **kwargs: Any) -> BaseModelOutput:
        """Encodes images.

        Args:
            pixel_values: [batch, 3, rows * patch_size, columns * patch_size], normalised.
            select_layer: Which block is the last to run, counted from the end.
            kwargs: `output_hidden_states`, `output_attentions` (with eager attention), `return_dict`.

        Returns:
            `last_hidden_state` [batch, num_class_tokens + rows * columns, hidden_size] of that block, after the final
            norm where it is the tower's last; `hidden_states` starts with the embedding, and entry i is the output of
            block i - 1, without that norm.

        Raises:
            UserError: If patches do not tile the images.
        """
        hidden = self.embed(pixel_values)
        for block in self.blocks[: len(self.blocks) + 1 + select_layer]:
            hidden = block(hidden)
        return BaseModelOutput(last_hidden_state=self.final_norm(hidden) if select_layer == -1 else hidden)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, SailViTPreprocessor):
            initialization.normal_(module.pos_embed, std=std)
        elif isinstance(module, InternViTEmbeddings):
            initialization.normal_(module.class_embedding, std=std)
            initialization.normal_(module.position_embedding, std=std)
        elif isinstance(module, InternViTBlock):
            initialization.constant_(module.ls1, self.config.initializer_factor)
            initialization.constant_(module.ls2, self.config.initializer_factor)


class SailViTPatchifier(nn.Module):
    """Projection of patches, and a norm."""

    def __init__(self, config: SailViTConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.hidden_size, config.patch_size, config.patch_size)
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Grid]:
        patches, grid = embed_patches(self.proj, pixel_values)
        return self.norm(patches), grid


class SailViTPreprocessor(nn.Module):
    """Patches with their positions."""

    def __init__(self, config: SailViTConfig) -> None:
        super().__init__()
        self.patchifier = SailViTPatchifier(config)
        positions = (config.image_size // config.patch_size) ** 2
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, config.hidden_size))

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches, grid = self.patchifier(pixel_values)
        return patches + interpolate_positions(self.pos_embed, grid)


class SailViTTrunk(nn.Module):
    """Blocks and the final norm."""

    def __init__(self, config: SailViTConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(SailViTBlock(config) for _ in range(config.num_hidden_layers))
        self.post_trunk_norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)


class SailViTModel(VisionTower):
    """SAILViT: the tower of SAIL-VL 1.5-2B, 1.6 and SAIL-VL2, also published alone."""

    config: SailViTConfig
    config_class = SailViTConfig

    def __init__(self, config: SailViTConfig) -> None:
        super().__init__(config)
        self.preprocessor = SailViTPreprocessor(config)
        self.trunk = SailViTTrunk(config)
        self.post_init()

    @property
    def blocks(self) -> nn.ModuleList:
        return self.trunk.blocks

    def embed(self, pixel_values: Tensor) -> Tensor:
        return self.preprocessor(pixel_values)

    def final_norm(self, hidden: Tensor) -> Tensor:
        return self.trunk.post_trunk_norm(hidden)

    def get_input_embeddings(self) -> nn.Module:
        return self.preprocessor.patchifier.proj


class InternViTEmbeddings(nn.Module):
    """Class token and patches, each with its position."""

    def __init__(self, config: InternViTConfig) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.patch_embedding = nn.Conv2d(3, config.hidden_size, config.patch_size, config.patch_size)
        positions = (config.image_size // config.patch_size) ** 2 + 1
        self.position_embedding = nn.Parameter(torch.zeros(1, positions, config.hidden_size))

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches, grid = embed_patches(self.patch_embedding, pixel_values)
        patches = patches + interpolate_positions(self.position_embedding[:, 1:], grid)
        class_token = self.class_embedding + self.position_embedding[:, :1]
        return torch.cat((class_token.expand(len(patches), -1, -1), patches), dim=1)


class InternViTEncoder(nn.Module):
    """Blocks; there is no final norm."""

    def __init__(self, config: InternViTConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(InternViTBlock(config) for _ in range(config.num_hidden_layers))


class InternViTModel(VisionTower):
    """InternViT: the tower of SAIL-VL 2B, 8B and 1.5-8B."""

    config: InternViTConfig
    config_class = InternViTConfig
    num_class_tokens = 1

    def __init__(self, config: InternViTConfig) -> None:
        super().__init__(config)
        self.embeddings = InternViTEmbeddings(config)
        self.encoder = InternViTEncoder(config)
        self.post_init()

    @property
    def blocks(self) -> nn.ModuleList:
        return self.encoder.layers

    def embed(self, pixel_values: Tensor) -> Tensor:
        return self.embeddings(pixel_values)

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embedding


def build_tower(config: SailViTConfig | InternViTConfig) -> SailViTModel | InternViTModel:
    """Builds the tower that a configuration describes, with random weights."""
    return SailViTModel(config) if isinstance(config, SailViTConfig) else InternViTModel(config)
