"""From the options of `sail compare` to what is asked of each backbone, checked before anything heavy is imported."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evals.segmentation.options import TrainOptions, choose_features
from sail_encoder.backbones.registry import choose_backbone, family_of, resolve_features
from sail_encoder.backbones.spec import BackboneSpec, FeatureSpec
from sail_encoder.commands.arguments import suggest
from sail_encoder.io.errors import UserError
from sail_encoder.io.refusals import check_writable
from sail_encoder.io.runs import RUN, require_own

COMMAND = "compare"
"""How run.json names the command."""

WARMUP = 20
"""Steps in which the learning rate of a dense head rises; fewer where there are fewer."""

DenseHeadChoice = tuple[TrainOptions, FeatureSpec, BackboneSpec]
"""Options of a dense head, which features it reads, and of which backbone."""


def name_models(models: str, random_weights: str | None) -> dict[str, bool]:
    """Names of backbones, and whether the weights of each are left random.

    Raises:
        UserError: If there is none, one is named twice, or weights of another one are to be random.
    """
    names = _split(models)
    if not names:
        raise UserError("no model was named; give some as --models sail-tiny,raw/14")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"--models names {twice[0]} twice; leave one of them out")
    random = _split(random_weights or "")
    others = [name for name in random if name not in names]
    if others:
        raise UserError(
            f"--random_weights names {others[0]}, which is none of --models {','.join(names)}"
            f"{suggest(others[0], names)}"
        )
    return {name: name in random for name in names}


def _split(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def check_place(folder: Path) -> None:
    """Makes sure that a comparison may write to a folder.

    Raises:
        UserError: If it cannot be written, or holds results of something else.
    """
    check_writable(folder)
    if require_own(folder, COMMAND) is None and (folder / "results.json").exists():
        raise UserError(f"{folder} has results.json and no {RUN}, so it is no comparison; use another --out")


def resolve_models(named: Mapping[str, bool], asked: Mapping[str, Any]) -> list[FeatureSpec]:
    """What is asked of each backbone; those that need no heavy imports are looked at first.

    Raises:
        UserError: If there is no such model, or it has no such layers, tokens or size.
    """
    given = {name: asked[name] for name in ("norm", "fuse", "pool", "precision", "store_dtype")}
    known = {}
    for name in sorted(named, key=lambda name: not family_of(name).is_light):
        chosen = choose_backbone(random_weights=named[name])
        _, known[name] = resolve_features(
            name, asked["layers"], asked["resize"], asked["max_tokens"], **given, **chosen
        )
    return [known[name] for name in named]


def choose_heads(wanted: Sequence[FeatureSpec], asked: Mapping[str, Any]) -> dict[str, DenseHeadChoice]:
    """What is asked of the dense head on each backbone, by the name of the backbone.

    Args:
        wanted: What is asked of each backbone.
        asked: Options of the command.

    Raises:
        UserError: If something of it is not possible.
    """
    names = ("layers", "norm", "resize", "max_tokens", "precision", "device", "layout", "head")
    shared = {name: asked[name] for name in (*names, "steps", "batch_size", "learning_rate", "cache_gb", "out")}
    shared |= {"data": asked["masks"], "crop": str(asked["crop"]), "mode": "cached", "overlays": 0}
    shared |= {"cache": str(Path(asked["out"]) / "features"), "warmup": max(0, min(WARMUP, asked["steps"] - 1))}
    options = [TrainOptions(**shared, model=one.model, random_weights=not one.pretrained) for one in wanted]
    return {one.model: (one, *choose_features(one)) for one in options}
