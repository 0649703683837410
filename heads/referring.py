"""Pixel-SAIL as what is trained: made of a SAIL or gone on with, in full or by adapters (LoRA, arXiv 2106.09685)."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from heads.contract import HeadError
from sail_encoder.io.hub import find_checkpoint
from sail_encoder.models.pixel_sail.checkpoint import load_pixel_sail
from sail_encoder.models.pixel_sail.modeling_pixel_sail import PixelSailForCausalLM
from sail_encoder.models.pixel_sail.processing_pixel_sail import PixelSailProcessor
from sail_encoder.models.pixel_sail.published import is_pixel_sail
from sail_encoder.models.reports import without_reports

if TYPE_CHECKING:
    from peft import PeftModel

_ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Linear maps of the transformer's blocks that adapters are put on."""

_SIZES = ("mask_channels", "head_channels")

_NEW = ("mask_head.", "model.vp_embed.", "model.embed_tokens.", "lm_head.")
"""Parts that are always trained in full: they are new, or have rows for new tokens."""


def build_pixel_sail(
    name: str, max_tokens: int | None = None, **fields: Any
) -> tuple[PixelSailForCausalLM, PixelSailProcessor]:
    """Builds what is to be trained, in float32; new parts are drawn from torch's random numbers.

    Args:
        name: A SAIL with its language head, or a Pixel-SAIL to go on with.
        max_tokens: Patches per image at most; by default as its image processor says.
        fields: Fields of `PixelSailConfig`, such as `mask_channels`; None keeps what is there.

    Raises:
        CheckpointError: If there is no such checkpoint, or it cannot be used.
        HeadError: If a size is asked for that a Pixel-SAIL does not have.
    """
    given = {field: value for field, value in fields.items() if value is not None}
    if is_pixel_sail(find_checkpoint(name)):
        model, processor = load_pixel_sail(name, torch.device("cpu"), torch.float32)
        for field, value in given.items():
            if field in _SIZES and value != (kept := getattr(model.config, field)):
                raise HeadError(f"{name} has {kept} {field}, not {value}; leave that out")
            setattr(model.config, field, value)
    else:
        processor = PixelSailProcessor.from_sail(name)
        # What a SAIL lacks of a Pixel-SAIL is what is to be trained.
        with without_reports():
            model = PixelSailForCausalLM.from_sail(name, processor.tokenizer, **given)
    if (model.config.head_channels or 0) > model.config.hidden_size:
        raise HeadError(
            f"head_channels cannot be {model.config.head_channels}; {name} has {model.config.hidden_size:,} channels"
        )
    if max_tokens is not None:
        processor.image_processor.max_tokens = max_tokens
    return model, processor


def add_adapters(model: PixelSailForCausalLM, rank: int) -> "PeftModel":
    """Puts adapters on the blocks of a model, which alone are trained there, beside all that is new.

    Args:
        model: The model, which is changed.
        rank: Rank of the adapters.

    Returns:
        PEFT's view of it, for `merge_and_unload` in the end.

    Raises:
        HeadError: If PEFT is not installed.
    """
    require_peft()
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(_ADAPTED)))
    for name, parameter in model.named_parameters():
        if name.startswith(_NEW):
            parameter.requires_grad_(True)
    return adapted


def compute_activations_twice(model: PixelSailForCausalLM) -> None:
    """Turns on gradient checkpointing, which transformers calls another name from 5.24 on."""
    newer = getattr(model, "activation_checkpointing_enable", None)
    enable = model.gradient_checkpointing_enable if newer is None else newer
    enable()


def require_peft() -> None:
    """Makes sure that adapters can be trained.

    Raises:
        HeadError: If PEFT is not installed.
    """
    from importlib.util import find_spec

    if find_spec("peft") is None:
        raise HeadError("adapters (lora) need PEFT: pip install peft; or leave lora out, to train all weights")


def save_pixel_sail(folder: Path, model: PixelSailForCausalLM, processor: PixelSailProcessor) -> None:
    """Writes a Pixel-SAIL in the native format, weights first.

    Raises:
        OSError: If the file system refuses; the same training writes them again.
    """
    try:
        model.save_pretrained(folder)
    except SafetensorError as error:
        # Its writer covers the error of the file with one of its own.
        raise OSError(f"the weights cannot be written to {folder}: {error}") from error
    processor.save_pretrained(folder)
