"""What a backbone is, told without loading its weights: sizes, cost of an image, memory."""

from dataclasses import dataclass

from sail_encoder.resizing import Resize


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
