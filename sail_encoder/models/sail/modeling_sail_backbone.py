"""SAIL as the backbone of transformers' dense heads (UperNet, DPT, Mask2Former, ...), through `AutoBackbone`.

model = UperNetForSemanticSegmentation(UperNetConfig(backbone_config=config))
model.backbone = SailBackbone.from_pretrained(folder, out_indices=[8, 16, 24, 32]).requires_grad_(False)
"""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput
from transformers.utils import can_return_tuple

from sail_encoder.images.patches import patchify_batch
from sail_encoder.images.resizing import Size
from sail_encoder.models.sail.config_file import MASK_HEAD
from sail_encoder.models.sail.configuration_sail import SailConfig
from sail_encoder.models.sail.modeling_sail import SailModel, SailPreTrainedModel
from sail_encoder.models.sail.packed_images import PackedImages


class SailBackbone(BackboneMixin, SailPreTrainedModel):
    """The encoder path of SAIL for batches of images of one size.

    The configuration says which stages it returns, by `out_features` or `out_indices`; it runs no block beyond the
    deepest of them. Gradients flow through it; `requires_grad_(False)` freezes it.
    """

    # The packed attention of the encoder path keeps no weights.
    has_attentions = False
    _keys_to_ignore_on_load_unexpected = ["lm_head.weight", MASK_HEAD]

    def __init__(self, config: SailConfig) -> None:
        super().__init__(config)
        self.model = SailModel(config)
        self.num_features = [config.hidden_size] * len(config.stage_names)
        self.post_init()

    def get_input_embeddings(self) -> torch.nn.Module:
        """Layer that maps a patch to the residual stream."""
        return self.model.vis_embed

    @can_return_tuple
    def forward(self, pixel_values: Tensor, output_hidden_states: bool | None = None, **_: Any) -> BackboneOutput:
        """Encodes images.

        Args:
            pixel_values: [batch, 3, height, width], normalised; sides are multiples of the patch size. They may be of
                another precision than the weights; feature maps then have theirs, as a head in float32 needs them.
            output_hidden_states: Whether to run all blocks and return every hidden state,
                [batch, 1 + nh * nw, C] each, the embedding first.

        Returns:
            `feature_maps`: for each requested stage [batch, C, nh, nw], or [batch, 1 + nh * nw, C] with
            `reshape_hidden_states=False`, where the state of `<vision>` takes the place of a class token.

        Raises:
            UserError: If patches do not tile the images.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        patches, grid = patchify_batch(pixel_values.to(self.dtype), self.config.vision_patch_size)
        states = self._states(patches, [grid] * len(pixel_values), run_all=bool(output_hidden_states))
        maps = [self._feature_map(states[self.stage_names.index(stage)], grid) for stage in self.out_features]
        hidden_states = tuple(states.values()) if output_hidden_states else None
        maps = [feature_map.to(pixel_values.dtype) for feature_map in maps]
        return BackboneOutput(feature_maps=tuple(maps), hidden_states=hidden_states)

    def _states(self, patches: Tensor, grids: list[Size], run_all: bool) -> dict[int, Tensor]:
        """Hidden states [batch, 1 + nh * nw, C] of the stages that are asked for, by number."""
        wanted = {self.stage_names.index(stage) for stage in self.out_features}
        if run_all:
            wanted = set(range(len(self.stage_names)))
        images = PackedImages.from_grids(torch.tensor(grids), patches, self.config)
        stream = self.model.residual_stream(patches, images)
        states = {}
        for stage in range(max(wanted) + 1):
            hidden = next(stream)
            if stage in wanted:
                # Each image is `<vision> <vpatch>... </vision>`; the closing token is left out.
                states[stage] = rearrange(hidden, "(n t) c -> n t c", n=len(grids))[:, :-1]
        return states

    def _feature_map(self, state: Tensor, grid: Size) -> Tensor:
        if self.config.apply_layernorm:
            state = self.model.norm(state)
        if not self.config.reshape_hidden_states:
            return state
        return rearrange(state[:, 1:], "n (r k) c -> n c r k", r=grid[0]).contiguous()
