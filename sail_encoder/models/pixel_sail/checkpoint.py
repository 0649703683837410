"""Loading a Pixel-SAIL with its processor, published or native."""

import torch

from sail_encoder.io.hub import find_checkpoint
from sail_encoder.io.weights import WeightFiles
from sail_encoder.models.pixel_sail.modeling_pixel_sail import PixelSailForCausalLM
from sail_encoder.models.pixel_sail.processing_pixel_sail import PixelSailProcessor
from sail_encoder.models.pixel_sail.published import read_config
from sail_encoder.models.reports import without_reports


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
    WeightFiles(folder)  # finds what is missing or damaged, which transformers would tell with a traceback
    with without_reports():
        model = PixelSailForCausalLM.from_pretrained(folder, dtype=dtype)
    return model.to(device).eval(), PixelSailProcessor.from_pretrained(folder)
