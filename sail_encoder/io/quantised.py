"""Quantised checkpoints, which are not read: what gives them away in config.json and in the names of tensors."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from sail_encoder.io.errors import CheckpointError

_SIGNS = {
    r"\.SCB$|\.weight_format$": "int8 of bitsandbytes",
    r"\.(nested_)?(absmax|quant_map)$|\.quant_state\.": "4 bits of bitsandbytes",
    r"\.g_idx$": "GPTQ",
    r"\.(qweight|qzeros)$": "GPTQ or AWQ",
    r"\.weight_(scale|packed|zero_point|shape|scale_inv|scale_2|global_scale)$": "scaled fp8 or integers",
    r"\.(input|k|v)_scale$": "scaled fp8",
}
"""Names of tensors that only quantised weights have, and by which method."""


def refuse_quantised_config(config: Mapping[str, Any], where: str) -> None:
    """Makes sure that a configuration, and those of the models in it, name no quantisation.

    Args:
        config: What config.json holds.
        where: What to call it in an error.

    Raises:
        CheckpointError: If one names one.
    """
    for part in (config, *(part for part in config.values() if isinstance(part, dict))):
        settings = part.get("quantization_config") or part.get("compression_config")
        if settings:
            fields = settings if isinstance(settings, dict) else {"quant_method": settings}
            raise quantised(where, str(fields.get("quant_method") or fields.get("quant_type") or "of unknown method"))


def refuse_quantised_tensors(dtypes: Iterable[str] | Mapping[str, Any], where: str) -> None:
    """Makes sure that no tensor is one of a quantised checkpoint: a scale, or a weight of integers or 8 bits.

    Args:
        dtypes: Names of tensors, and where these are known their types.
        where: What to call the checkpoint in an error.

    Raises:
        CheckpointError: If one is; it names the method as far as the name of the tensor tells it.
    """
    names = list(dtypes)
    for sign, method in _SIGNS.items():
        found = next((name for name in names if re.search(sign, name)), None)
        if found is not None:
            raise quantised(where, f"{method}, by its {found}")
    for name, dtype in dtypes.items() if isinstance(dtypes, Mapping) else ():
        is_small = dtype.itemsize < 2 and str(dtype) != "torch.bool"
        if is_small or (name.endswith("weight") and not dtype.is_floating_point):
            raise quantised(where, f"{name} is {str(dtype).removeprefix('torch.')}")


def quantised(where: str, how: str) -> CheckpointError:
    """Error for a quantised checkpoint."""
    return CheckpointError(f"{where} is a quantised checkpoint ({how}), which is not read; use the one in bfloat16")
