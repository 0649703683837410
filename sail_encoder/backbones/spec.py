"""What a backbone is, told without loading its weights: sizes, cost of an image, memory."""

from dataclasses import dataclass

from sail_encoder.images.resizing import Resize
from sail_encoder.io.errors import CheckpointError
from sail_encoder.io.hub import RAW


@dataclass(frozen=True)
class BackboneSpec:
    """Sizes of a backbone.

    Attributes:
        name: What it is loaded as.
        kind: Family, such as `SAIL`.
        patch_size: Side of a patch in pixels.
        embed_dim: Channels of a feature.
        num_layers: Blocks.
        block_parameters: Parameters of one block.
        other_parameters: Parameters outside the blocks that features need.
        attention_dim: Heads times head size.
        extra_tokens: Tokens of an image beside its patches.
        resize: How images are brought to size unless told otherwise.
    """

    name: str
    kind: str
    patch_size: int
    embed_dim: int
    num_layers: int
    block_parameters: int
    other_parameters: int
    attention_dim: int
    extra_tokens: int
    resize: Resize

    def flops(self, patches: int, layers: int | None = None) -> int:
        """Floating-point operations of one image: two per parameter and token, and the two products of attention."""
        tokens = patches + self.extra_tokens
        per_block = 2 * self.block_parameters * tokens + 4 * tokens**2 * self.attention_dim
        return (layers or self.num_layers) * per_block + 2 * patches * 3 * self.patch_size**2 * self.embed_dim

    def parameters(self, layers: int | None = None) -> int:
        """Parameters that features of the first `layers` blocks need."""
        return (layers or self.num_layers) * self.block_parameters + self.other_parameters


def describe_raw(name: str) -> BackboneSpec:
    """Reads the size of raw patches from `raw/` and their side in pixels; see `describe`.

    Raises:
        CheckpointError: If that is no number from 1.
    """
    text = name.removeprefix(RAW)
    if not text.isdecimal() or int(text) < 1:
        raise CheckpointError(f"no raw patches '{name}'; give their side in pixels, such as raw/14")
    side = int(text)
    return BackboneSpec(
        name=name,
        kind="raw patches",
        patch_size=side,
        embed_dim=3 * side**2,
        num_layers=1,
        block_parameters=0,
        other_parameters=0,
        attention_dim=0,
        extra_tokens=0,
        resize=Resize(),
    )
