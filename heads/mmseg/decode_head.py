"""Our dense heads as decode heads of mmsegmentation, so that a head goes from one to the other."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from torch import Tensor

from heads.contract import HeadError
from heads.dense.contract import OnePassHead
from heads.dense.registry import TrainedHead, build_dense_head, save_dense_head
from heads.mmseg.backbone import SailBackbone
from sail_encoder.backbones.spec import FeatureSpec
from sail_encoder.images.resizing import Size


@MODELS.register_module()
class NativeHead(BaseDecodeHead):
    """One of our heads, with mmsegmentation's losses and inference.

    mmsegmentation takes the loss only from the logits, so UperNet comes without its auxiliary head, which would never
    learn; a segmentor can have one of mmsegmentation's own as `auxiliary_head`.

    Args:
        kind: linear, upernet or another name of `heads.dense.registry`.
        in_channels: Channels of each layer's map.
        in_index: Which of the backbone's maps it reads; all by default.
        num_classes: Classes to tell apart.
        head_options: Other arguments of the head.
        kwargs: As in mmsegmentation's `BaseDecodeHead`: loss_decode, ignore_index, align_corners, ...

    Raises:
        HeadError: If there is no such head, or it cannot be trained here.
    """

    def __init__(
        self,
        kind: str,
        in_channels: Sequence[int],
        num_classes: int,
        in_index: Sequence[int] | None = None,
        head_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        index = list(range(len(in_channels)) if in_index is None else in_index)
        super().__init__(
            list(in_channels),
            1,
            num_classes=num_classes,
            in_index=index,
            input_transform="multiple_select",
            init_cfg=None,
            **kwargs,
        )
        # The classifier of mmsegmentation's own heads, which ours have inside.
        del self.conv_seg
        self.kind = kind
        options = without_auxiliary(head_options or {}) if kind == "upernet" else head_options or {}
        self.head = build_dense_head(kind, list(in_channels), num_classes, **options)
        if isinstance(self.head, OnePassHead):
            raise HeadError(f"the {kind} head is not trained by gradients; use sail segment train")

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        return self.head([inputs[index] for index in self.in_index])


def without_auxiliary(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of UperNet that leave out its auxiliary head.

    Raises:
        HeadError: If they ask for one.
    """
    weight = options.get("auxiliary_weight", 0)
    if weight:
        raise HeadError(
            f"auxiliary_weight is {weight}, but mmsegmentation would not train our auxiliary head; leave it out of "
            "head_options, and give the segmentor an auxiliary_head of mmsegmentation's, such as FCNHead"
        )
    return {**options, "auxiliary_weight": 0}


def export_head(model: torch.nn.Module, classes: Sequence[str], folder: str | Path, resize: str) -> None:
    """Saves the head of a trained segmentor for `sail segment eval` and `predict`, with the windows of its test_cfg.

    Args:
        model: A segmentor of a `SailBackbone` and a `NativeHead`.
        classes: Names of its classes.
        folder: Where to save it.
        resize: The size at which its test pipeline looks at images, which the segmentor does not know: `short512` for
            `Resize` with `scale=(2048, 512)` and `keep_ratio`, `native` where it has no `Resize`, or `448x672`.

    Raises:
        HeadError: If the segmentor is made of other parts.
        UserError: If the size is not understood.
    """
    backbone, head = model.backbone, model.decode_head
    if not isinstance(backbone, SailBackbone) or not isinstance(head, NativeHead):
        raise HeadError("only a SailBackbone with a NativeHead can be exported")
    layers = tuple(backbone.layers[index] for index in head.in_index)
    loaded = backbone.load(next(head.parameters()).device)
    size, weights = loaded.spec.resize.override(resize, None), loaded.fingerprint(max(layers))
    source = FeatureSpec(backbone.model, layers, backbone.norm, size=size, weights=weights)
    windows = _windows_of(model.test_cfg)
    save_dense_head(folder, TrainedHead(head.kind, head.head, source, list(classes), "online", *windows))


def _windows_of(test_cfg: Any) -> tuple[Size | None, Size | None]:
    """Windows and how far one is from the next, both (height, width) in pixels, from a segmentor's configuration."""
    if test_cfg.get("mode", "whole") == "whole":
        return None, None
    (height, width), (down, across) = test_cfg["crop_size"], test_cfg["stride"]
    return (height, width), (down, across)
