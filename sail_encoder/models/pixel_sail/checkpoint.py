"""Loading a Pixel-SAIL with its processor, published or native."""

import torch

from sail_encoder.io.errors import explain_damage
from sail_encoder.io.hub import find_checkpoint
from sail_encoder.models.generation import read_generation_config
from sail_encoder.models.pixel_sail.modeling_pixel_sail import PixelSailForCausalLM
from sail_encoder.models.pixel_sail.processing_pixel_sail import PixelSailProcessor
from sail_encoder.models.pixel_sail.published import read_config
from sail_encoder.models.reports import without_reports
from sail_encoder.models.sail.checkpoint import open_sail


def load_pixel_sail(
    name: str, device: torch.device, dtype: torch.dtype, revision: str | None = None
) -> tuple[PixelSailForCausalLM, PixelSailProcessor]:
    """Loads a model, in evaluation mode, and its processor.

    Args:
        name: A folder or a Hub name.
        device: Where to.
        dtype: Precision of weights and computation.
        revision: Branch, tag or commit on the Hub.

    Raises:
        CheckpointError: If there is no such checkpoint, it is no Pixel-SAIL, or it is damaged.
    """
    read_config(name, revision)
    folder = find_checkpoint(name, revision)
    # Both find what is missing or damaged, which transformers would tell with a traceback.
    open_sail(folder)
    read_generation_config(folder)
    with without_reports():
        model = PixelSailForCausalLM.from_pretrained(folder, dtype=dtype)
    with explain_damage(f"cannot read the tokenizer in {folder}"):
        # Code that comes with a checkpoint is never run, and nobody is asked whether to run it.
        processor = PixelSailProcessor.from_pretrained(folder, trust_remote_code=False)
    return model.to(device).eval(), processor
