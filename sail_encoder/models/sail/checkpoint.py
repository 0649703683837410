"""Reading SAIL checkpoints, published or native, straight onto a device.

Published: keys `model.*` with `model.vis_embed.weight`, and `lm_head.weight`; the configuration says "mistral".
Native: what `save_pretrained` writes; the configuration says "sail", and without a language head the names have no
`model.` in front. Of a Pixel-SAIL, published or native, the SAIL inside is read.
"""

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sail_encoder.io.errors import CheckpointError, UserError, explain_damage
from sail_encoder.io.weights import WeightFiles
from sail_encoder.models.generation import read_generation_config
from sail_encoder.models.sail.config_file import (
    MASK_HEAD,
    PATCH_WEIGHTS,
    VISION_TOKENS,
    missing_patch_weight,
    read_config,
)
from sail_encoder.models.sail.configuration_sail import SailConfig
from sail_encoder.models.sail.modeling_sail import SailForCausalLM, SailModel


@dataclass(frozen=True)
class SailCheckpoint:
    """A SAIL checkpoint whose weights have not been read yet.

    Attributes:
        folder: Where it is.
        config: Its configuration, completed.
        weights: Its weight files.
        prefix: What stands before the names of `SailModel` in the files: `model.` or nothing, and in a published
            Pixel-SAIL `single_transformer.model.`.
    """

    folder: Path
    config: SailConfig
    weights: WeightFiles
    prefix: str

    @property
    def has_language_head(self) -> bool:
        """Tells whether it can generate text."""
        return self._language_head in self.weights.tensors or self.config.tie_word_embeddings

    @property
    def has_mask_head(self) -> bool:
        """Tells whether it is a Pixel-SAIL, which can answer with masks."""
        return bool(self.mask_keys())

    @property
    def _language_head(self) -> str:
        return f"{self.prefix.removesuffix('model.')}lm_head.weight"

    def encoder_config(self, layers: int | None = None) -> SailConfig:
        """The configuration of the first `layers` blocks with no vocabulary but the three vision tokens.

        Raises:
            UserError: If the checkpoint has fewer layers, or its vision token ids are unknown.
        """
        depth = self.config.num_hidden_layers
        if layers is not None and not 1 <= layers <= depth:
            raise UserError(f"layers={layers} cannot be loaded; this checkpoint has 1 to {depth}")
        self.require_vision_tokens()
        changes = {
            "architectures": ["SailModel"],
            "num_hidden_layers": layers or depth,
            "vocab_size": 3,
            "vision_start_token_id": 0,
            "image_token_id": 1,
            "vision_end_token_id": 2,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
            "out_features": None,
            "out_indices": None,
        }
        return SailConfig(**{**self.config.to_dict(), **changes})

    def language_config(self) -> SailConfig:
        """The configuration of the whole model."""
        config = deepcopy(self.config)
        config.architectures = ["SailForCausalLM"]
        return config

    def require_vision_tokens(self) -> None:
        """Makes sure that the ids of the vision tokens are known.

        Raises:
            UserError: If one is not.
        """
        _ = self.config.vision_token_ids

    def encoder_keys(self, config: SailConfig) -> dict[str, str]:
        """For each tensor of a `SailModel` with such a configuration, its name in the files."""
        return {name: self.prefix + name for name in expected_shapes(config)}

    def language_keys(self) -> dict[str, str]:
        """For each tensor of a `SailForCausalLM`, its name in the files."""
        keys = {f"model.{name}": self.prefix + name for name in expected_shapes(self.config)}
        return keys if self.config.tie_word_embeddings else {**keys, "lm_head.weight": self._language_head}

    def mask_keys(self) -> dict[str, str]:
        """Names of the tensors of a mask head and of visual prompts, where there are any; they keep their names."""
        return {name: name for name in self.weights.tensors if re.search(MASK_HEAD, name)}

    def read(
        self, keys: Mapping[str, str], rows: Mapping[str, list[int]] | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """Reads tensors one by one, as stored.

        Args:
            keys: For each tensor its name in the files.
            rows: For some names in the files, the rows to read in place of the whole tensor.

        Yields:
            The name that `keys` gives to a tensor, and the tensor.
        """
        targets = {source: target for target, source in keys.items()}
        for source, tensor in self.weights.read(targets, dict(rows or {})):
            yield targets[source], tensor

    @property
    def vision_rows(self) -> dict[str, list[int]]:
        """Rows of the text embedding that an encoder needs: those of the three vision tokens."""
        return {f"{self.prefix}embed_tokens.weight": list(self.config.vision_token_ids)}


def open_sail(folder: Path, **token_ids: int) -> SailCheckpoint:
    """Opens a checkpoint folder and checks its weights against its configuration.

    Args:
        folder: A folder with `config.json` and weights.
        token_ids: `vision_start_token_id`, `image_token_id`, `vision_end_token_id` in place of what is written there.

    Raises:
        CheckpointError: If the folder holds something else, or weights and configuration disagree.
    """
    raw = read_config(folder)
    weights = WeightFiles(folder)
    patch_weight = next((key for key in PATCH_WEIGHTS if key in weights.tensors), None)
    if patch_weight is None:
        raise missing_patch_weight(folder)
    prefix = patch_weight.removesuffix("vis_embed.weight")
    checkpoint = SailCheckpoint(folder, _build_config(folder, {**raw, **token_ids}), weights, prefix)
    _check_shapes(checkpoint)
    return checkpoint


def _build_config(folder: Path, fields: dict[str, Any]) -> SailConfig:
    path = folder / "config.json"
    # Transformers checks some fields, and stumbles over others.
    with explain_damage(f"{path} does not describe a SAIL model"):
        config = SailConfig(**fields)
    for name in VISION_TOKENS:
        token = getattr(config, name)
        if token is not None and not 0 <= token < config.vocab_size:
            raise CheckpointError(f"{path}: {name} cannot be {token}; the vocabulary has {config.vocab_size:,} tokens")
    if config.sliding_window is not None and config.sliding_window < 1:
        raise CheckpointError(f"{path}: sliding_window cannot be {config.sliding_window}; allowed is null or from 1")
    return config


def _check_shapes(checkpoint: SailCheckpoint) -> None:
    stored = checkpoint.weights.tensors
    with explain_damage(f"{checkpoint.folder / 'config.json'} describes no model that can be built"):
        expected = expected_shapes(checkpoint.config)
    for name, shape in expected.items():
        key = checkpoint.prefix + name
        if key not in stored:
            raise CheckpointError(f"{checkpoint.folder} lacks the tensor {key} that its config.json calls for")
        if stored[key].shape != shape:
            raise CheckpointError(
                f"{checkpoint.folder}: {key} is {list(stored[key].shape)}, but config.json calls for {list(shape)}"
            )


def expected_shapes(config: SailConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a `SailModel`."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in SailModel(config).state_dict().items()}


def load_encoder(checkpoint: SailCheckpoint, device: torch.device, dtype: torch.dtype, layers: int | None) -> SailModel:
    """Builds a `SailModel` for images alone: no head, no text embeddings, no more layers than asked for.

    Tensors go from the file to the device one at a time, so the weights are never in memory twice.
    """
    config = checkpoint.encoder_config(layers)
    config.dtype = dtype
    with torch.device("meta"):
        model = SailModel(config)
    _place(model, checkpoint.read(checkpoint.encoder_keys(config), checkpoint.vision_rows), device, dtype)
    return model.eval()


def load_language_model(checkpoint: SailCheckpoint, device: torch.device, dtype: torch.dtype) -> SailForCausalLM:
    """Builds the whole model, tensor by tensor like `load_encoder`, with the generation settings beside the weights.

    Raises:
        CheckpointError: If the checkpoint has no language head.
    """
    if not checkpoint.has_language_head:
        raise CheckpointError(f"{checkpoint.folder} is an encoder without language head; use the full checkpoint")
    config = checkpoint.language_config()
    config.dtype = dtype
    with torch.device("meta"):
        model = SailForCausalLM(config)
    _place(model, checkpoint.read(checkpoint.language_keys()), device, dtype)
    model.tie_weights()
    model.generation_config = read_generation_config(checkpoint.folder) or model.generation_config
    return model.eval()


def _place(
    model: torch.nn.Module, tensors: Iterator[tuple[str, Tensor]], device: torch.device, dtype: torch.dtype
) -> None:
    for name, tensor in tensors:
        module, _, attribute = name.rpartition(".")
        weight = torch.nn.Parameter(tensor.to(device, dtype), requires_grad=False)
        setattr(model.get_submodule(module), attribute, weight)


def random_encoder(
    checkpoint: SailCheckpoint, device: torch.device, dtype: torch.dtype, layers: int | None
) -> SailModel:
    """Builds the same model with random weights, always the same, as a baseline."""
    config = checkpoint.encoder_config(layers)
    config.dtype = dtype
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SailModel(config)
    return model.to(device, dtype).eval().requires_grad_(False)
