"""`sail segment train --head referring`: what is checked before torch is imported, and the run in its folder."""

import os
import re
import sys
from pathlib import Path

from evals.referring.data import TRAIN_SPLIT, VAL_SPLIT, ReferringData, open_splits
from evals.referring.options import REFERRING, check_model, decisive, read_options
from evals.segmentation.options import TrainOptions
from evals.segmentation.run_folders import TRAIN, check_owner, check_run, claim
from sail_encoder.backbones.registry import announce
from sail_encoder.io.errors import UserError
from sail_encoder.io.runs import RUN, require_own

_SETTINGS = (
    *("config.json", "generation_config.json", "processor_config.json", "chat_template.jinja"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt"),
    "vocab.json",
)
"""Files of a Pixel-SAIL beside its weights."""

_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
"""Names that transformers gives to weights."""


def train_referring(options: TrainOptions) -> int:
    """Trains a Pixel-SAIL on referring expressions, from the last checkpoint if there is one, and scores it.

    The folder then is a Pixel-SAIL, beside the checkpoint, log and results of the run.

    Returns:
        Exit status: 0 done, 130 or 143 stopped by a signal.

    Raises:
        UserError: If something that is asked for is not possible.
    """
    own = read_options(options)
    check_model(options.model)
    _check_folder(options.folder, options.model)
    training, validation = _open_data(options.data)
    settings = decisive(options, own, training.identity)
    if not options.overwrite:
        check_run(options.folder, settings)
    announce(options.model)
    from evals.referring.run import ReferringRun

    run = ReferringRun(options, own, training, validation)
    claim(options.folder, settings, options.overwrite, _model_files(options.folder))
    status = run.learn(settings)
    if status:
        return status
    print(run.finish())
    return 0


def _open_data(data: str) -> tuple[ReferringData, ReferringData]:
    """The training and the validation split."""
    splits = open_splits(data, TRAIN_SPLIT, VAL_SPLIT)
    training, validation = splits[TRAIN_SPLIT], splits[VAL_SPLIT]
    print(
        f"{len(training):,} training and {len(validation):,} validation images with referring expressions",
        file=sys.stderr,
    )
    return training, validation


def _model_files(folder: Path) -> list[str]:
    """Names of the files of a Pixel-SAIL in a folder."""
    weights = sorted(path.name for path in folder.glob("model*") if _WEIGHTS.fullmatch(path.name))
    return [*(name for name in _SETTINGS if (folder / name).exists()), *weights]


def _check_folder(folder: Path, model: str) -> None:
    """Makes sure that a folder holds no model but one that this command has trained, and not the one it begins with.

    Raises:
        UserError: If it does, or holds anything else that is not to be overwritten.
    """
    if os.path.realpath(folder) == os.path.realpath(model):
        raise UserError(f"--out and --model are both {model}, which would be overwritten; use another --out")
    check_owner(folder, TRAIN)
    if require_own(folder, TRAIN) is None and (files := _model_files(folder)):
        raise UserError(
            f"{folder} has {files[0]} and no {RUN}, so it is no run of sail {TRAIN} --head {REFERRING} and nothing is "
            "written there; use another --out"
        )
