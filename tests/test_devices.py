"""How devices are written, with and without torch."""

import pytest
import torch

from sail_encoder.io.devices import DTYPES, check_device, choose_device, choose_dtype, split_devices
from sail_encoder.io.errors import UserError


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:15", "mps", "mps:0", "xpu:1"])
def test_what_is_written_rightly(device):
    check_device(device)
    if device != "auto":
        assert str(torch.device(device)) == device


@pytest.mark.parametrize(
    "device", ["", "gpu", "meta", "cuda:", "cuda:x", "cuda:-1", "cuda:0,cpu", "cuda:99999", "CPU", "cpu\n"]
)
def test_what_is_not(device):
    for read in (check_device, choose_device):
        with pytest.raises(UserError, match="is not understood; use auto, cpu, cuda, cuda:0 or mps"):
            read(device)


def test_several_devices():
    assert split_devices("cuda:0, cuda:1") == ["cuda:0", "cuda:1"]
    with pytest.raises(UserError, match="device 'gpu' is not understood"):
        split_devices("cpu,gpu")


def test_precisions_are_those_of_torch():
    cpu = torch.device("cpu")
    assert [choose_dtype(name, cpu) for name in DTYPES] == [torch.float32, torch.bfloat16, torch.float16]
    assert choose_dtype(torch.bfloat16, cpu) == torch.bfloat16
    with pytest.raises(UserError, match="dtype 'int8' is unknown; use auto, float32, bfloat16, float16"):
        choose_dtype("int8", cpu)
