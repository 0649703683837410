"""Options of `sail segment train --head referring`, and those of dense heads that have no effect there."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from evals.segmentation.options import TrainOptions
from heads.contract import HeadError
from heads.recipe import Recipe
from heads.settings import check_at_least_zero, check_positive
from sail_encoder.chat.families import PIXEL_SAIL, SAIL, find_chat
from sail_encoder.chat.fingerprint import fingerprint_chat
from sail_encoder.io.devices import choose_device, choose_dtype
from sail_encoder.io.errors import CheckpointError, UserError, require_positive
from sail_encoder.io.typed import require_fields

REFERRING = "referring"
"""Name of the head."""

_USED = {
    *("data", "out", "model", "head", "head_options", "max_tokens", "steps", "batch_size", "optimizer"),
    *("learning_rate", "weight_decay", "schedule", "warmup", "decay_norms", "validate_every", "save_every"),
    *("log_every", "latex", "seed", "device", "precision", "overwrite"),
}
_DECISIVE = (
    *("head", "max_tokens", "steps", "batch_size", "optimizer", "learning_rate", "weight_decay", "schedule"),
    *("warmup", "decay_norms", "seed"),
)


@dataclass(frozen=True)
class ReferringOptions:
    """Options of training a Pixel-SAIL, in `head_options`.

    Attributes:
        mask_channels: Channels of the dot product of pixels and `[SEG]`.
        head_channels: Channels of the upsampling blocks, at most as many as the transformer has.
        train_num_points: Points per mask at which the losses are taken.
        mask_weight: Weight of the binary cross-entropy of the masks.
        dice_weight: Weight of their Dice loss.
        text_weight: Weight of the loss of the text.
        expressions: Expressions per image and step at most, as turns of one conversation.
        lora: Rank of adapters (LoRA) on the blocks; 0 trains all weights.
        clip: Largest norm of the gradient; 0 leaves it as it is.
        gradient_checkpointing: Whether activations are computed twice, to save memory.

    Raises:
        HeadError: If one is not possible.
    """

    mask_channels: int | None = None
    head_channels: int | None = None
    train_num_points: int | None = None
    mask_weight: float | None = None
    dice_weight: float | None = None
    text_weight: float | None = None
    expressions: int = 4
    lora: int = 0
    clip: float = 1.0
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        for name in ("mask_channels", "head_channels", "train_num_points"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name), whole=True)
        for name in ("mask_weight", "dice_weight", "text_weight"):
            if getattr(self, name) is not None:
                check_at_least_zero(name, getattr(self, name))
        check_positive("expressions", self.expressions, whole=True)
        check_at_least_zero("lora", self.lora, whole=True)
        check_at_least_zero("clip", self.clip)

    @property
    def config_fields(self) -> dict[str, Any]:
        """Those that are fields of `PixelSailConfig`."""
        sizes = ("mask_channels", "head_channels")
        names = (*sizes, "train_num_points", "mask_weight", "dice_weight", "text_weight")
        return {name: getattr(self, name) for name in names}


def read_options(options: TrainOptions) -> ReferringOptions:
    """Reads the options of this head, and makes sure that the others are its too.

    Raises:
        UserError: If one is unknown, not possible, or has no effect here.
    """
    foreign = [
        field.name
        for field in fields(options)
        if field.init and field.name not in _USED
        if field.name in options.given or getattr(options, field.name) != field.default
    ]
    if foreign:
        raise UserError(f"--{foreign[0]} has no effect with --head {REFERRING}; leave it out")
    if options.max_tokens is not None:
        require_positive("max_tokens", options.max_tokens)
    if options.precision == "float16":
        raise UserError("--precision float16 is too narrow to train all weights in; use bfloat16 or float32")
    given, known = options.head_options or {}, [field.name for field in fields(ReferringOptions)]
    if unknown := sorted(given.keys() - set(known)):
        raise UserError(f"--head_options of {REFERRING} has no {unknown[0]}; it has {', '.join(known)}")
    try:
        own = ReferringOptions(**require_fields(given, ReferringOptions))
    except (HeadError, TypeError) as error:
        raise UserError(f"--head_options of {REFERRING}: {error}") from None
    if own.lora:
        from heads.referring import require_peft

        require_peft()
    _ = recipe_of(options, own)
    return own


def check_model(name: str) -> None:
    """Makes sure that a Pixel-SAIL can be made of a model, or that it is one.

    Raises:
        CheckpointError: If it is something else, or there is no such model.
    """
    source = find_chat(name)
    if source.adapter is not None or source.family not in (SAIL, PIXEL_SAIL):
        raise CheckpointError(
            f"{name} is {'an adapter' if source.adapter else f'a {source.family.name}'}, of which no Pixel-SAIL can be "
            "trained; name a SAIL with its language head, or a Pixel-SAIL"
        )


def recipe_of(options: TrainOptions, own: ReferringOptions) -> Recipe:
    """Recipe of the training, with a warm-up in equal steps from the first on."""
    return replace(options.recipe, warmup_start=None, clip=own.clip)


def decisive(options: TrainOptions, own: ReferringOptions, identity: str) -> dict[str, Any]:
    """All that decides the weights that come out, as run.json and the checkpoint keep it.

    Args:
        options: The options.
        own: Those of this head.
        identity: That of the training data.
    """
    dtype = choose_dtype(options.precision, choose_device(options.device))
    return {
        **{name: getattr(options, name) for name in _DECISIVE},
        **asdict(own),
        "data": identity,
        "model": options.model,
        "weights": fingerprint_chat(find_chat(options.model)),
        "precision": str(dtype).removeprefix("torch."),
    }
