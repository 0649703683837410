"""Loading what `find_chat` has found: the engine of its family, and the adapter on it where there is one."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sail_encoder.chat.families import ChatSource
from sail_encoder.io.devices import choose_device, choose_dtype
from sail_encoder.io.errors import CheckpointError, UserError, explain_damage

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sail_encoder.chat.engine import Engine

ADAPTER_WEIGHTS = "adapter_model.safetensors"


def load_engine(source: ChatSource, device: str, dtype: str, options: dict[str, Any]) -> "Engine":
    """Loads a model that can chat; `options` are those of its family.

    Raises:
        CheckpointError: If model or adapter cannot be used.
        UserError: If an option is not for this family.
    """
    source.family.require_options(options)
    where = choose_device(device)
    engine = source.family.engine_class().load(source.name, where, choose_dtype(dtype, where), **options)
    if source.adapter is not None:
        engine.model = merge_adapter(engine.model, source.adapter)
    return engine


def merge_adapter(model: "PreTrainedModel", folder: Path) -> "PreTrainedModel":
    """Adds the weights of an adapter (PEFT) to those of its model.

    Raises:
        CheckpointError: If it has none, or they do not fit.
        UserError: If PEFT is not installed.
    """
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise CheckpointError(f"{folder} has no {ADAPTER_WEIGHTS}; save the adapter again with PEFT's save_pretrained")
    from safetensors.torch import load_file

    from sail_encoder.io.weights import require_finite

    try:
        from peft import PeftModel
    except ImportError:
        raise UserError(f"{folder} is an adapter, which needs PEFT: pip install peft") from None
    with explain_damage(f"cannot read {folder / ADAPTER_WEIGHTS}"):
        require_finite(load_file(folder / ADAPTER_WEIGHTS), folder / ADAPTER_WEIGHTS)
    try:
        merged = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    except (KeyError, RuntimeError, ValueError, TypeError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{folder} does not fit its model: {reason}") from None
    adapted: PreTrainedModel = merged.eval().requires_grad_(False)
    return adapted
