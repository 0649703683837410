import json

import pytest
import torch
from helpers import GOLDEN, GOLDEN_IDS
from safetensors import SafetensorError
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText

from sail_encoder import SailForCausalLM, SailImageProcessor, SailModel, UserError, load_backbone
from sail_encoder.commands.convert import convert
from sail_encoder.models.sail.checkpoint import load_language_model, open_sail


def test_full_conversion_works_with_the_auto_classes(tmp_path, golden, golden_backbone):
    out = tmp_path / "native"
    assert convert(str(GOLDEN / "checkpoint"), str(out), **GOLDEN_IDS) == 0
    assert AutoConfig.from_pretrained(out).model_type == "sail"
    model = AutoModel.from_pretrained(out)
    assert isinstance(model, SailModel)
    assert isinstance(AutoModelForImageTextToText.from_pretrained(out), SailForCausalLM)
    assert isinstance(AutoImageProcessor.from_pretrained(out), SailImageProcessor)
    assert load_backbone(str(out)).fingerprint(2) == golden_backbone.fingerprint(2)
    case = golden[0]
    with torch.no_grad():
        out = model(pixel_values=case.tensors["patches"], image_grid_hw=torch.tensor([case.grid]))
    torch.testing.assert_close(out.last_hidden_state, case.tensors["hidden_states"][-1].flatten(0, 1))


def test_encoder_only(tmp_path, golden_backbone):
    out = tmp_path / "encoder"
    convert(str(GOLDEN / "checkpoint"), str(out), encoder_only=True, layers=2, max_shard_size="1MB", **GOLDEN_IDS)
    assert len(list(out.glob("*.safetensors"))) > 1
    backbone = load_backbone(str(out))
    assert backbone.num_layers == 2
    assert backbone.fingerprint(1) == golden_backbone.fingerprint(1)
    config = json.loads((out / "config.json").read_text())
    assert config["vocab_size"] == 3
    assert config["architectures"] == ["SailModel"]
    assert isinstance(AutoModel.from_pretrained(out), SailModel)


def test_precision(tmp_path):
    convert(str(GOLDEN / "checkpoint"), str(tmp_path / "half"), precision="bfloat16", **GOLDEN_IDS)
    assert AutoModel.from_pretrained(tmp_path / "half").dtype == torch.bfloat16


def test_a_checkpoint_keeps_its_configuration():
    checkpoint = open_sail(GOLDEN / "checkpoint", **GOLDEN_IDS)
    before = checkpoint.config.to_dict()
    model = load_language_model(checkpoint, torch.device("cpu"), torch.bfloat16)
    assert model.config.dtype == torch.bfloat16
    assert checkpoint.config.to_dict() == before


def test_a_disk_that_fills_up_leaves_nothing(tmp_path, monkeypatch):
    def fill_up(tensors, path, metadata):
        path.write_bytes(b"half of it")
        raise SafetensorError("No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", fill_up)
    with pytest.raises(UserError, match=r"No space left on device .* then give the same command again"):
        convert("sail-tiny", str(tmp_path / "new"))
    assert not list(tmp_path.iterdir())


def test_refusals(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    source = str(GOLDEN / "checkpoint")
    with pytest.raises(UserError, match="not empty"):
        convert(source, str(tmp_path / "full"), **GOLDEN_IDS)
    with pytest.raises(UserError, match="needs --encoder_only"):
        convert(source, str(tmp_path / "new"), layers=1, **GOLDEN_IDS)
    with pytest.raises(UserError, match="token ids are unknown"):
        convert(source, str(tmp_path / "new"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]
