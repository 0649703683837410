"""From the name of a checkpoint to the folder that holds it."""

import re
from pathlib import Path

from sail_encoder.io.errors import CheckpointError

TINY = "sail-tiny"
"""Name of the checkpoint that ships with the package."""

TINY_FOLDER = Path(__file__).parents[1] / "tiny"


TIMM = "timm/"
HF = "hf/"
RAW = "raw/"
"""What the names of backbones begin with that are no SAIL checkpoints."""


WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
"""Files of weights, those that are taken first at the front."""


def holds_weights(folder: Path) -> bool:
    """Tells whether there are weights in a folder."""
    return any(any(folder.glob(files)) for files in WEIGHTS)


def find_checkpoint(
    name: str, revision: str | None = None, weights: bool = True, prefixes: tuple[str, ...] = ("",)
) -> Path:
    """The folder of a checkpoint, downloaded if need be.

    Args:
        name: `sail-tiny`, a folder, or the name of a repository on the Hugging Face Hub, such as
            `ByteDance-Seed/SAIL-7B`.
        revision: Branch, tag or commit on the Hub.
        weights: Whether the weights are needed; without them only small files are downloaded.
        prefixes: What the names of the tensors begin with that are needed; of sharded weights only files that hold
            some of them are downloaded.

    Returns:
        A local folder. Of a repository that has both, safetensors are taken before pickles.

    Raises:
        CheckpointError: If there is no such folder and nothing can be downloaded.
    """
    if name == TINY:
        return TINY_FOLDER
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        raise CheckpointError(f"no model '{name}'; use {TINY}, a folder, or a Hub name such as ByteDance-Seed/SAIL-7B")
    return _download(name, revision, weights, prefixes)


def _download(name: str, revision: str | None, weights: bool, prefixes: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    settings = ["*.json", "*.jinja", "merges.txt"]
    try:
        if not weights or prefixes != ("",):
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=settings))
        if not weights:
            return folder
        for files in WEIGHTS:
            needed = [files] if prefixes == ("",) else _shards_with(prefixes, folder, files)
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=[*settings, *needed]))
            if any(folder.glob(files)):
                return folder
    except RepositoryNotFoundError:
        raise CheckpointError(f"no folder and no Hub repository '{name}' (or it is private: hf auth login)") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"cannot download '{name}' ({reason}); pass a local folder instead") from None
    raise CheckpointError(f"'{name}' on the Hub has no model*.safetensors and no pytorch_model*.bin")


def _shards_with(prefixes: tuple[str, ...], folder: Path, files: str) -> list[str]:
    """Of weight files of one format, those with tensors whose names begin so, as far as an index tells."""
    from sail_encoder.io.weights import shards_with

    index = next(folder.glob(f"{files}.index.json"), None)
    return [files] if index is None else shards_with(index, prefixes)
