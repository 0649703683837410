"""Description of a backbone before and after its weights are loaded, and of features of it."""

from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from sail_encoder.images.decoding import IMAGENET_MEAN, IMAGENET_STD
from sail_encoder.images.resizing import MAX_TOKENS, Resize, Size
from sail_encoder.io.errors import UserError
from sail_encoder.io.hub import RAW
from sail_encoder.io.typed import require_fields

Channels = tuple[float, float, float]


@dataclass(frozen=True)
class BackboneSpec:
    """Sizes, layers, tokens and normalisation of a backbone.

    Attributes:
        name: What it is loaded as.
        family: Name of its family in the registry.
        patch_size: Side of a patch in pixels.
        embed_dim: Channels of a feature.
        num_layers: Blocks; layers count from 0 to `num_layers - 1`.
        block_parameters: Parameters of one block.
        other_parameters: Parameters outside the blocks that features need.
        attention_dim: Heads times head size.
        extra_tokens: Tokens per image beside its patches.
        has_class_token: Whether one of them is a class token.
        resize: How images are brought to size unless asked otherwise.
        resample: Name of Pillow's filter with which they are resized.
        image_mean: Mean per channel that is subtracted from pixels in [0, 1].
        image_std: What they are divided by then.
        stages: Patch size and channels of each layer where they differ from layer to layer, as in hierarchical models;
            `patch_size` and `embed_dim` are then those of one of them.
        second_grid: Whether the tiles of a second grid are seen too (MSAC).
        has_final_norm: Whether the model has a norm after its last block, by itself or before or after its pooling,
            that layers of this kind can go through.
    """

    name: str
    family: str
    patch_size: int
    embed_dim: int
    num_layers: int
    block_parameters: int = 0
    other_parameters: int = 0
    attention_dim: int = 0
    extra_tokens: int = 0
    has_class_token: bool = False
    resize: Resize = field(default_factory=Resize)
    resample: str = "BILINEAR"
    image_mean: Channels = IMAGENET_MEAN
    image_std: Channels = IMAGENET_STD
    stages: tuple[tuple[int, int], ...] = ()
    second_grid: bool = False
    has_final_norm: bool = True

    def at(self, layers: Collection[int]) -> "BackboneSpec":
        """The same with the patches and channels that some layers have; the final norm is for those of the last stage.

        Raises:
            UserError: If they differ between these layers.
        """
        if not self.stages:
            return self
        if len({self.stages[layer] for layer in layers}) > 1:
            listed = "; ".join(
                f"{', '.join(str(layer) for layer in range(self.num_layers) if self.stages[layer] == stage)} "
                f"{stage[0]} pixels and {stage[1]} channels"
                for stage in dict.fromkeys(self.stages)
            )
            raise UserError(
                f"layers of {self.name} differ in their patches, so that one call takes layers of one kind: {listed}"
            )
        stage = self.stages[next(iter(layers))]
        has_final_norm = self.has_final_norm and stage == self.stages[-1]
        rule = self.resize.to_patches(stage[0])
        return replace(self, patch_size=stage[0], embed_dim=stage[1], resize=rule, has_final_norm=has_final_norm)

    def grid(self, image_size: Size, size: Resize) -> Size:
        """Rows and columns of patches of an image of (height, width) pixels under a rule of resizing.

        Raises:
            UserError: If patches do not tile the size that the rule asks for.
        """
        return size.grid(image_size, self.patch_size)

    def flops(self, patches: int, layers: int | None = None) -> int:
        """Floating-point operations per image: two per parameter and token, and the two products of attention."""
        tokens = patches + self.extra_tokens
        per_block = 2 * self.block_parameters * tokens + 4 * tokens**2 * self.attention_dim
        return (layers or self.num_layers) * per_block + 2 * patches * 3 * self.patch_size**2 * self.embed_dim

    def channels(self, pool: str, class_token: bool = False) -> int:
        """Channels of a feature that is pooled so, or of a patch with or without the class token beside it.

        Raises:
            UserError: If that needs a class token, and there is none.
        """
        if not self.has_class_token:
            if class_token:
                raise UserError(f"--class-token reads a class token, but {self.name} has none; leave it out")
            if pool in NEED_CLASS_TOKEN:
                raise UserError(f"--pool {pool} reads a class token, but {self.name} has none; use mean, max or gem")
        return self.embed_dim * (2 if class_token or pool == "cls_mean" else 1)

    def parameters(self, layers: int | None = None) -> int:
        """Parameters that features of the first `layers` blocks need."""
        return (layers or self.num_layers) * self.block_parameters + self.other_parameters


VectorPooling = Literal["mean", "max", "gem", "cls", "cls_mean"]
Pooling = Literal["none", "mean", "max", "gem", "cls", "cls_mean"]
NEED_CLASS_TOKEN = ("cls", "cls_mean")

FORMAT = 2
"""Number of the form in which a `FeatureSpec` is written; 0.1.0 wrote none."""

UNKNOWN = {"precision": "auto", "weights": ""}
"""Values of fields that are not known before the device is chosen, or the weights are loaded."""

MEANING = ("weights", "layers", "norm", "pool", "class_token", "fuse", "options")
"""Fields that decide the meaning of a channel; the others decide at which size and how exactly images are seen."""


@dataclass(frozen=True)
class FeatureSpec:
    """Description of features, from the command line to `run.json` and `head.json`.

    Attributes:
        model: Name of the backbone.
        layers: Block indices, in order.
        norm: Whether the model's final norm is applied; never of a model without one.
        pool: How patches and class token are pooled, `none` for grids.
        fuse: How a head joins several layers: `concat` or `mean`.
        size: How images are brought to size.
        exif_rotate: Whether EXIF orientation is applied.
        precision: Precision of weights and computation; `auto` as long as the device is not known.
        store_dtype: Type of stored values.
        pretrained: Whether the weights are read, or random.
        weights: Fingerprint of the weights, empty as long as they are not loaded.
        options: Options of the backbone's family that decide its features.
        class_token: Whether each patch of a grid has the class token of its image beside it, in channels of its own.
    """

    model: str
    layers: tuple[int, ...]
    norm: bool = True
    pool: str = "none"
    fuse: str = "concat"
    size: Resize = field(default_factory=Resize)
    exif_rotate: bool = False
    precision: str = "auto"
    store_dtype: str = "float16"
    pretrained: bool = True
    weights: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    class_token: bool = False

    @property
    def title(self) -> str:
        """Name of the backbone in reports."""
        if self.model.startswith(RAW):
            return f"raw pixels, {self.size}"
        return self.model if self.pretrained else f"{self.model}, random weights"

    @property
    def depth(self) -> int:
        """Blocks that have to be computed."""
        return max(self.layers) + 1

    def to_json(self) -> dict[str, Any]:
        """Fields for a JSON file."""
        size = {"size": str(self.size), "max_tokens": self.size.max_tokens}
        return {"format": FORMAT, **asdict(self), "layers": list(self.layers), **size}

    @classmethod
    def from_json(cls, written: dict[str, Any]) -> "FeatureSpec":
        """Reads what `to_json` has written, or 0.1.0 into run.json and head.json.

        Raises:
            KeyError, TypeError, ValueError: If it is neither.
        """
        renamed = {"backbone": "model", "dtype": "store_dtype", "resize": "size"}
        values = {renamed.get(name, name): value for name, value in written.items()}
        values["size"] = Resize.parse(str(values["size"]), int(values.get("max_tokens", MAX_TOKENS)))
        values["layers"] = tuple(require_fields(values, {"layers": list[int]})["layers"])
        if not values["layers"] or min(values["layers"]) < 0:
            raise ValueError(f"layers is {values['layers']!r}")
        known = {field.name for field in fields(cls)}
        known_values = {name: value for name, value in values.items() if name in known}
        return cls(**require_fields({"model": "", **known_values}, cls))

    def differences(self, other: "FeatureSpec", names: Collection[str] | None = None) -> list[str]:
        """Names each value in which other features differ from these, such as `norm was True, now False`.

        The name of the model may differ, since a copy has the same weights, and what one of both does not know yet is
        not compared.

        Args:
            other: The other features.
            names: Fields to compare; all by default.
        """
        mine, theirs = self.to_json(), other.to_json()
        compared = (name for name in theirs if name not in ("format", "model") and (names is None or name in names))
        return [
            f"{name} was {mine[name]}, now {theirs[name]}"
            for name in compared
            if mine[name] != theirs[name] and UNKNOWN.get(name) not in (mine[name], theirs[name])
        ]
