"""Models of random weights in the sizes that the benchmarks run; time does not depend on the weights."""

import torch

from sail_encoder.models.sail.configuration_sail import SailConfig
from sail_encoder.models.sail.modeling_sail import SailForCausalLM

SIZES = {
    "small": {
        "hidden_size": 1024,
        "intermediate_size": 3584,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
    },
    "7b": {},
}
TOKEN_IDS = {"vision_start_token_id": 31990, "image_token_id": 31991, "vision_end_token_id": 31992}


def build_model(size: str, device: torch.device, dtype: torch.dtype) -> SailForCausalLM:
    """A model of one of `SIZES`, built on its device without a copy elsewhere."""
    torch.manual_seed(0)
    config = SailConfig(**{**SIZES[size], **TOKEN_IDS})
    config.dtype = dtype
    with torch.device("meta"):
        model = SailForCausalLM(config)
    model = model.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(0, 0.02) if parameter.ndim == 2 else parameter.fill_(1)
    return model


def synchronize(device: torch.device) -> None:
    """Waits for the device, where it works on its own."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
