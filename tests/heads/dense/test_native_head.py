"""Our dense heads as decode heads of mmsegmentation."""

import pytest
import torch

from heads.contract import HeadError

pytest.importorskip("mmseg")
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from heads.mmseg import NativeHead

CHANNELS = [6, 8, 6, 8]
NARROW = {"channels": 8, "auxiliary_channels": 4}


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope("mmseg")


@pytest.mark.parametrize(("kind", "options"), [("linear", {}), ("upernet", NARROW)])
def test_a_step_of_training_reaches_every_parameter(kind, options):
    head = NativeHead(kind, CHANNELS, num_classes=4, head_options=options).train()
    maps = [torch.randn(2, channels, 4, 6) for channels in CHANNELS]
    samples = [
        SegDataSample(gt_sem_seg=PixelData(data=torch.randint(0, 4, (1, 40, 60))), metainfo={"img_shape": (40, 60)})
        for _ in range(2)
    ]
    head.loss(maps, samples, {})["loss_ce"].backward()
    untouched = [name for name, parameter in head.named_parameters() if parameter.grad is None]
    assert untouched == []


def test_an_auxiliary_head_that_would_not_learn_is_refused():
    with pytest.raises(HeadError, match=r"auxiliary_weight is 0.4, but .* such as FCNHead"):
        NativeHead("upernet", CHANNELS, 4, head_options={**NARROW, "auxiliary_weight": 0.4})
