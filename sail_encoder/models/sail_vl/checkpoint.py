"""Reading SAIL-VL checkpoints, published or native, tensor by tensor straight onto a device.

A whole model has `vision_model.*`, `mlp1.*` and `language_model.*`; a tower alone has its names with or without
`vision_model.` in front. Of a whole model only those files need to be there that hold the parts asked for.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PreTrainedModel

from sail_encoder.io.errors import CheckpointError, UserError
from sail_encoder.io.quantised import quantised, refuse_quantised_config
from sail_encoder.io.weights import WeightFiles
from sail_encoder.models.generation import read_generation_config
from sail_encoder.models.sail_vl.configuration_sail_vl import (
    TOWER_CONFIGS,
    InternViTConfig,
    SailViTConfig,
    SailVLConfig,
)
from sail_encoder.models.sail_vl.modeling_sail_vl import SailVLForConditionalGeneration, SailVLVisionModel
from sail_encoder.models.sail_vl.modeling_sailvit import InternViTModel, SailViTModel, build_tower
from sail_encoder.models.sail_vl.pretrained import complete_generation_config, require_exact_keys
from sail_encoder.models.sail_vl.published import LANGUAGE_HEAD, TOWERS, complete_config, complete_tower, read_json

TOWER, PROJECTOR, LANGUAGE_MODEL = "vision_model.", "mlp1.", "language_model."
"""Parts of a whole model, by the prefix of the names of their tensors."""

ALL_PARTS = (TOWER, PROJECTOR, LANGUAGE_MODEL)

TowerConfig = SailViTConfig | InternViTConfig
Model = TypeVar("Model", bound=PreTrainedModel)


@dataclass(frozen=True)
class SailVLCheckpoint:
    """A checkpoint whose weights have not been read yet.

    Attributes:
        folder: Where it is.
        config: Configuration of the whole model, or of a tower that was published alone.
        weights: Its weight files, as far as they hold the parts that it was opened for.
    """

    folder: Path
    config: SailVLConfig | TowerConfig
    weights: WeightFiles

    @property
    def has_language_model(self) -> bool:
        """Tells whether it can project and generate text."""
        return isinstance(self.config, SailVLConfig)

    @property
    def tower_prefix(self) -> str:
        """Prefix of the names of the tower's tensors: `vision_model.` or nothing."""
        return TOWER if any(name.startswith(TOWER) for name in self.weights.tensors) else ""

    def whole_config(self) -> SailVLConfig:
        """Copy of the configuration of the whole model.

        Raises:
            CheckpointError: If the checkpoint is a tower alone.
        """
        if not isinstance(self.config, SailVLConfig):
            raise CheckpointError(f"{self.folder} is a vision tower alone; use the checkpoint of a whole SAIL-VL")
        return deepcopy(self.config)


def tower_config(config: SailVLConfig | TowerConfig, layers: int | None = None) -> TowerConfig:
    """Configuration of a tower's first `layers` blocks, all of them where None.

    Raises:
        UserError: If the tower has fewer.
    """
    tower = deepcopy(config.vision_config if isinstance(config, SailVLConfig) else config)
    depth = tower.num_hidden_layers
    if layers is not None and not 1 <= layers <= depth:
        raise UserError(f"layers={layers} cannot be loaded; this checkpoint has 1 to {depth}")
    tower.num_hidden_layers = layers or depth
    return tower


def read_config(folder: Path, **changes: Any) -> SailVLConfig | TowerConfig:
    """Reads config.json, published or native, of a whole model or of a tower alone.

    Args:
        folder: Where it is.
        changes: Settings in place of what is written there, such as `image_token_id`.

    Raises:
        CheckpointError: If it describes something else.
    """
    raw, where = read_json(folder / "config.json"), str(folder / "config.json")
    refuse_quantised_config(raw, where)
    try:
        if raw.get("model_type") in TOWERS:
            fields = {**complete_tower(raw, where), **changes}
            return TOWER_CONFIGS[fields.pop("model_type")](**fields)
        fields = raw if raw.get("model_type") == SailVLConfig.model_type else complete_config(raw, folder)
        return SailVLConfig(**{**fields, **changes})
    except CheckpointError:
        raise
    except (StrictDataclassError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{where} does not describe a model that can be built: {reason}") from None


def open_sail_vl(folder: Path, parts: tuple[str, ...] = ALL_PARTS, **changes: Any) -> SailVLCheckpoint:
    """Opens a checkpoint folder and checks its weights against its configuration.

    Args:
        folder: A folder with `config.json` and weights.
        parts: Of a whole model, the parts that will be loaded; files without them may be missing.
        changes: Settings in place of what is written there, such as `image_token_id`.

    Raises:
        CheckpointError: If the folder holds something else, or weights and configuration disagree.
    """
    config = read_config(folder, **changes)
    if not isinstance(config, SailVLConfig):
        parts = ("",)
    checkpoint = SailVLCheckpoint(folder, config, WeightFiles(folder, parts))
    prefix = "" if checkpoint.has_language_model else checkpoint.tower_prefix
    expected = {prefix + name: shape for name, shape in expected_shapes(config).items()}
    _check({name: shape for name, shape in expected.items() if name.startswith(parts)}, checkpoint)
    return checkpoint


def expected_shapes(config: SailVLConfig | TowerConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the model that a configuration describes."""
    is_whole = isinstance(config, SailVLConfig)
    with torch.device("meta"):
        model = SailVLForConditionalGeneration(config) if is_whole else build_tower(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if is_whole and config.tie_word_embeddings:
        shapes.pop(LANGUAGE_HEAD, None)
    return shapes


def _check(expected: dict[str, tuple[int, ...]], checkpoint: SailVLCheckpoint) -> None:
    stored, folder = checkpoint.weights.tensors, checkpoint.folder
    require_exact_keys(expected.keys() - stored.keys(), stored.keys() - expected.keys(), str(folder))
    for name, shape in expected.items():
        tensor = stored[name]
        if tensor.shape != shape:
            raise CheckpointError(f"{folder}: {name} is {list(tensor.shape)}, but config.json calls for {list(shape)}")
        if not tensor.dtype.is_floating_point:
            raise quantised(str(folder), f"{name} is {str(tensor.dtype).removeprefix('torch.')}")


def load_tower(
    checkpoint: SailVLCheckpoint, device: torch.device, dtype: torch.dtype, layers: int | None = None
) -> SailViTModel | InternViTModel:
    """Builds the tower alone, with no more blocks than asked for."""
    config = tower_config(checkpoint.config, layers)
    return _load(lambda: build_tower(config), checkpoint, checkpoint.tower_prefix, device, dtype)


def load_vision_model(checkpoint: SailVLCheckpoint, device: torch.device, dtype: torch.dtype) -> SailVLVisionModel:
    """Builds the tower and the projector.

    Raises:
        CheckpointError: If the checkpoint is a tower alone.
    """
    config = checkpoint.whole_config()
    return _load(lambda: SailVLVisionModel(config), checkpoint, "", device, dtype)


def load_model(
    checkpoint: SailVLCheckpoint, device: torch.device, dtype: torch.dtype
) -> SailVLForConditionalGeneration:
    """Builds the whole model, with the generation settings beside the weights.

    Raises:
        CheckpointError: If the checkpoint is a tower alone.
    """
    config = checkpoint.whole_config()
    model = _load(lambda: SailVLForConditionalGeneration(config), checkpoint, "", device, dtype)
    # Rotary frequencies are no weights, and on the meta device they were not computed.
    language = model.language_model.model
    language.rotary_emb = type(language.rotary_emb)(config.text_config).to(device)
    model.generation_config = read_generation_config(checkpoint.folder) or model.generation_config
    complete_generation_config(model)
    return model


def random_tower(config: TowerConfig, device: torch.device, dtype: torch.dtype) -> SailViTModel | InternViTModel:
    """Builds a tower with random weights, always the same, as a baseline."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_tower(config)
    return model.to(device, dtype).eval().requires_grad_(False)


def random_vision_model(config: SailVLConfig, device: torch.device, dtype: torch.dtype) -> SailVLVisionModel:
    """Builds a tower and a projector with random weights, always the same, as a baseline."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SailVLVisionModel(config)
    return model.to(device, dtype).eval().requires_grad_(False)


def _load(
    build: Callable[[], Model], checkpoint: SailVLCheckpoint, prefix: str, device: torch.device, dtype: torch.dtype
) -> Model:
    """Builds a model on the meta device and fills it tensor by tensor, so that no weight is in memory twice."""
    with torch.device("meta"):
        model = build()
    model.config.dtype = dtype
    wanted = [prefix + name for name in model.state_dict() if prefix + name in checkpoint.weights.tensors]
    for key, tensor in checkpoint.weights.read(wanted):
        module, _, attribute = key.removeprefix(prefix).rpartition(".")
        weight = nn.Parameter(tensor.to(device, dtype), requires_grad=False)
        setattr(model.get_submodule(module), attribute, weight)
    model.tie_weights()
    return model.eval()
