"""Vision models of transformers as backbones: `hf/` and a name on the Hub, or a folder."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn

from sail_encoder.backbones.batch import Encoded
from sail_encoder.backbones.hf_config import (
    ARCHITECTURES,
    describe_folder,
    has_fixed_positions,
    is_part_of_whole,
    read_vision_config,
)
from sail_encoder.backbones.spec import BackboneSpec
from sail_encoder.backbones.stacked import StackedBackbone
from sail_encoder.io.errors import CheckpointError, UserError
from sail_encoder.io.hub import HF, find_checkpoint
from sail_encoder.io.weights import WeightFiles, require_finite
from sail_encoder.models.reports import without_reports

_TOWERS = {r"^(model\.)?vision_tower\.": "", r"^vision_model\.": ""}
"""What the names of a tower's tensors begin with in a whole model, and what they are in the tower alone."""

_PREFIXES = ("vision_model.", "vision_tower.", "model.vision_tower.")
_DECISIVE = (
    *("model_type", "num_attention_heads", "hidden_act", "layer_norm_eps", "rms_norm_eps", "image_size", "patch_size"),
    *("rope_theta", "is_native"),
)
"""Settings that features depend on beside the weights."""


class _DeepestReached(Exception):  # noqa: N818 (it ends a forward pass that has all it needs, and is no error)
    """Raised in a forward pass once the deepest block that is wanted has run."""


class TransformersBackbone(StackedBackbone):
    """A vision model of transformers.

    A layer is the output of a block. CLIP norms its class token alone; here its final norm is applied to patches too,
    as timm and OpenCLIP do. InternVL has none.

    Args:
        spec: What it is.
        model: The model, in evaluation mode.
        any_size: Whether it takes images of any size; its position embeddings are then interpolated by itself.
    """

    def __init__(self, spec: BackboneSpec, model: Any, any_size: bool) -> None:
        super().__init__(spec, model, any_size)
        self.architecture = ARCHITECTURES[model.config.model_type]
        self.blocks_name, self.blocks = _find_blocks(model)

    def forward_stack(self, pixel_values: Tensor, layers: Sequence[int]) -> Encoded:
        states = self._run(pixel_values, layers)
        prefix = self.spec.extra_tokens
        patches = {layer: states[layer][:, prefix:].flatten(0, 1) for layer in layers}
        # Registers stand after the class token.
        has_class = self.spec.has_class_token
        return Encoded(patches, {layer: states[layer][:, 0] for layer in layers} if has_class else {})

    def _run(self, pixel_values: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
        """Outputs of blocks [n, tokens, C]; the pass ends with the deepest."""
        states: dict[int, Tensor] = {}

        def keep(layer: int) -> Callable[..., None]:
            def hook(_block: nn.Module, _inputs: Any, output: Any) -> None:
                states[layer] = output[0] if isinstance(output, tuple) else output
                if layer == layers[-1]:
                    raise _DeepestReached

            return hook

        with ExitStack() as hooks:
            for layer in layers:
                hooks.callback(self.blocks[layer].register_forward_hook(keep(layer)).remove)
            with suppress(_DeepestReached):
                self.model(pixel_values, **self.architecture.interpolation)
        return states

    def final_norm(self, states: Tensor) -> Tensor:
        return self.model.get_submodule(self.architecture.final_norm)(states)

    def named_weights(self, last_layer: int) -> Iterable[tuple[str, Tensor]]:
        for name, weight in self.model.state_dict().items():
            place = name.removeprefix(f"{self.blocks_name}.")
            if "mask_token" not in name and (place == name or int(place.split(".")[0]) <= last_layer):
                yield name, weight

    def constants(self) -> dict[str, Any]:
        settings = self.model.config.to_dict()
        return {name: settings[name] for name in _DECISIVE if name in settings}


def load_hf(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    layers: int | None = None,
    revision: str | None = None,
    pretrained: bool = True,
) -> TransformersBackbone:
    """Loads a vision model of transformers; see `load_backbone`."""
    bare = name.removeprefix(HF)
    folder = find_checkpoint(bare, revision, weights=False)
    spec, (model_type, settings) = describe_folder(folder, name), read_vision_config(folder)
    if layers is not None and not 1 <= layers <= spec.num_layers:
        raise UserError(f"layers={layers} cannot be loaded; {name} has 1 to {spec.num_layers}")
    spec = replace(spec, num_layers=layers or spec.num_layers)
    config, arguments = _configure(folder, model_type, settings, spec.num_layers)
    if pretrained:
        folder = find_checkpoint(bare, revision, prefixes=_PREFIXES if is_part_of_whole(folder) else ("",))
        model = _read_model(folder, config, arguments, dtype)
    else:
        model = _random_model(config, arguments)
    model = model.to(device, dtype).eval().requires_grad_(False)
    return TransformersBackbone(spec, model, not has_fixed_positions(model_type, settings))


def _configure(folder: Path, model_type: str, settings: dict[str, Any], depth: int) -> tuple[Any, dict[str, bool]]:
    """Configuration of a model of so many blocks without a pooling head, and arguments of its class for the latter."""
    architecture = ARCHITECTURES[model_type]
    kind = getattr(transformers, architecture.model)
    try:
        config = kind.config_class.from_dict(settings)
    except (StrictDataclassError, AttributeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{folder / 'config.json'} does not describe a model that can be built: {reason}"
        ) from None
    config.num_hidden_layers = depth
    taken = inspect.signature(kind).parameters
    for name, value in architecture.headless.items():
        if name not in taken:
            setattr(config, name, value)
    return config, {name: value for name, value in architecture.headless.items() if name in taken}


def _random_model(config: Any, arguments: dict[str, bool]) -> Any:
    """Model with random weights, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(transformers, ARCHITECTURES[config.model_type].model)(config, **arguments)


def _read_model(folder: Path, config: Any, arguments: dict[str, bool], dtype: torch.dtype) -> Any:
    """Model with the weights in a folder, safetensors or a pickle of nothing but tensors.

    Raises:
        CheckpointError: If there are none, one is missing, is quantised or holds NaN, or their sizes are others than
            the configuration's.
    """
    options = {"key_mapping": _TOWERS, "weights_only": True, "trust_remote_code": False, "local_files_only": True}
    kind = getattr(transformers, ARCHITECTURES[config.model_type].model)
    # Scales beside quantised weights would be passed over, and the weights taken as they are.
    WeightFiles(folder, _PREFIXES if is_part_of_whole(folder) else ("",))
    try:
        # Text towers and heads lie beside what is asked for.
        with without_reports():
            model, info = kind.from_pretrained(
                folder, config=config, dtype=dtype, output_loading_info=True, **options, **arguments
            )
    except (OSError, RuntimeError, ValueError, SafetensorError, UnpicklingError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"cannot load the weights in {folder} ({reason}); download them again") from None
    missing = sorted(name for name in info["missing_keys"] if "mask_token" not in name)
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} weights of a {config.model_type}, first {missing[0]}; download it again"
        )
    require_finite(model.state_dict(), folder)
    return model


def _find_blocks(model: Any) -> tuple[str, nn.ModuleList]:
    """The list of a model's blocks, and its name."""
    depth = model.config.num_hidden_layers
    lists = ((name, part) for name, part in model.named_modules() if isinstance(part, nn.ModuleList))
    return next((name, part) for name, part in lists if len(part) == depth)
