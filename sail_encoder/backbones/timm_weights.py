"""Weights of one's own for a timm model, from a file or a folder."""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from timm.models import load_state_dict
from torch import Tensor

from sail_encoder.io.errors import CheckpointError
from sail_encoder.io.files import require_regular
from sail_encoder.io.quantised import refuse_quantised_tensors
from sail_encoder.io.weights import WeightFiles, require_finite


def load_weights(model: Any, path: Path) -> None:
    """Puts weights into a model without a classifier; one in the file is left out.

    Args:
        model: A timm model.
        path: A safetensors file, a checkpoint of PyTorch with nothing but tensors and plain values in it, also one that
            timm's training has written, or a folder with either under the names that transformers gives them.

    Raises:
        CheckpointError: If there are no such weights, they are of another model, are quantised or hold NaN.
    """
    state, expected = read_weights(path), model.state_dict()
    refuse_quantised_tensors({name: weight.dtype for name, weight in state.items()}, str(path))
    classifier = model.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{head}." for head in ((classifier,) if isinstance(classifier, str) else classifier))
    extra = [name for name in state if name not in expected and not name.startswith(heads)]
    _refuse(path, model, [name for name in expected if name not in state], extra)
    for name, weight in expected.items():
        if state[name].shape != weight.shape:
            raise CheckpointError(
                f"{path}: {name} is {list(state[name].shape)}, but {_title(model)} has {list(weight.shape)}; "
                "name the model that they are of"
            )
    loaded = {name: state[name] for name in expected}
    require_finite(loaded, path)
    model.load_state_dict(loaded)


def read_weights(path: Path) -> Mapping[str, Tensor]:
    """Tensors in a file or a folder, by name.

    Raises:
        CheckpointError: If there are none.
    """
    if path.is_dir():
        files = WeightFiles(path)
        return dict(files.read(files.tensors))
    try:
        require_regular(path)
        return load_state_dict(str(path), weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"no weights {path}; name a safetensors file, a checkpoint, or their folder") from None
    # A damaged file ends the unpickler at any point of its own.
    except Exception as error:
        # timm wraps what torch raises of a pickle with code in it.
        if isinstance(error, UnpicklingError) or "weights_only" in str(error):
            raise CheckpointError(
                f"{path} holds objects other than tensors and is not opened; convert it to safetensors where it came "
                "from"
            ) from None
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path} holds no weights that can be read ({reason})") from None


def _refuse(path: Path, model: Any, missing: list[str], extra: list[str]) -> None:
    """Refuses weights that are not exactly those of a model."""
    if missing or extra:
        counts = [f"lack {len(missing)}, first {missing[0]}"] if missing else []
        counts += [f"have {len(extra)} more, first {extra[0]}"] if extra else []
        raise CheckpointError(
            f"weights in {path} are not those of {_title(model)}: they {' and '.join(counts)}; name their model"
        )


def _title(model: Any) -> str:
    return f"timm's {model.pretrained_cfg['architecture']}"
