import json
import shutil

import pytest
import torch
from helpers import GOLDEN, GOLDEN_IDS, noise, relative_error, small_config
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models

from sail_encoder import CheckpointError, SailForCausalLM, SailImageProcessor, UserError, load_backbone
from sail_encoder.backbones.registry import describe
from sail_encoder.io import weights
from sail_encoder.io.hub import find_checkpoint
from sail_encoder.models.sail.checkpoint import open_sail
from sail_encoder.models.sail.modeling_sail import SailModel


@pytest.fixture
def checkpoint(small_checkpoint, tmp_path):
    """A copy that may be damaged."""
    return shutil.copytree(small_checkpoint, tmp_path / "checkpoint")


def edit_config(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value != "drop"}))


def edit_weights(folder, edit):
    state = load_file(folder / "model.safetensors")
    save_file(edit(state), folder / "model.safetensors", metadata={"format": "pt"})


def test_encoder_loads_only_what_features_need(checkpoint):
    backbone = load_backbone(str(checkpoint), layers=2)
    state = backbone.model.state_dict()
    assert backbone.num_layers == 2
    assert state["embed_tokens.weight"].shape == (3, 64)
    assert not any("layers.2" in name or "lm_head" in name for name in state)
    whole = load_backbone(str(checkpoint))
    image = torch.rand(3, 40, 60)
    shallow, deep = (b.encode([image], layers=1)[0].grid for b in (backbone, whole))
    assert torch.equal(shallow, deep)
    assert backbone.fingerprint(1) == whole.fingerprint(1) != whole.fingerprint(2)


def as_pickle(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("reader", "prepare"), [(weights._SafetensorsReader, lambda folder: None), (weights._PickleReader, as_pickle)]
)
def test_weights_are_read_one_at_a_time_and_only_those_of_the_layers(checkpoint, monkeypatch, reader, prepare):
    """When one is read, those before it have been placed: none is waiting in memory."""
    prepare(checkpoint)
    read, placed, set_one = [], [], SailModel.get_submodule
    original = reader.read

    def watch(self, key, rows):
        assert len(read) == len(placed)
        read.append(key)
        return original(self, key, rows)

    monkeypatch.setattr(reader, "read", watch)
    monkeypatch.setattr(SailModel, "get_submodule", lambda self, name: placed.append(name) or set_one(self, name))
    load_backbone(str(checkpoint), layers=2)
    assert len(placed) == len(read) == len(set(read))
    assert not [key for key in read if "layers.2." in key or "lm_head" in key]


def test_dtype_and_device(checkpoint):
    backbone = load_backbone(str(checkpoint), device="cpu", dtype="bfloat16")
    assert backbone.dtype == torch.bfloat16
    assert {p.dtype for p in backbone.model.parameters()} == {torch.bfloat16}
    for bad, message in (({"dtype": "float64"}, "float32, bfloat16"), ({"device": "tpu9"}, "not understood")):
        with pytest.raises(UserError, match=message):
            load_backbone(str(checkpoint), **bad)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="PyTorch sees 0 CUDA devices"):
            load_backbone(str(checkpoint), device="cuda:3")


def test_token_ids_come_from_the_tokenizer(tmp_path):
    folder = shutil.copytree(GOLDEN / "checkpoint", tmp_path / "published")
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, **{f"w{i}": i for i in range(1, 300)}}, unk_token="<unk>"))
    tokenizer.add_special_tokens(["<vision>", "<vpatch>", "</vision>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    assert open_sail(folder).config.vision_token_ids == (300, 301, 302)
    assert SailForCausalLM.from_pretrained(folder).config.vision_token_ids == (300, 301, 302)


def test_unknown_token_ids_are_an_error_for_features_only():
    folder = GOLDEN / "checkpoint"
    assert SailForCausalLM.from_pretrained(folder).config.image_token_id is None
    with pytest.raises(UserError, match="vision token ids are unknown"):
        load_backbone(str(folder))


def test_patch_size_comes_from_the_weights(tmp_path, golden_backbone):
    folder = shutil.copytree(GOLDEN / "checkpoint", tmp_path / "published")
    edit_config(folder, vision_patch_size="drop")
    assert open_sail(folder, **GOLDEN_IDS).config.vision_patch_size == 14
    assert SailForCausalLM.from_pretrained(folder, **GOLDEN_IDS).config.vision_patch_size == 14


def test_native_and_published_agree(tmp_path, golden_backbone):
    SailForCausalLM.from_pretrained(GOLDEN / "checkpoint", **GOLDEN_IDS).save_pretrained(tmp_path)
    assert load_backbone(str(tmp_path)).fingerprint(2) == golden_backbone.fingerprint(2)


def damage_missing_patch_weight(folder):
    edit_weights(folder, lambda state: {k: v for k, v in state.items() if "vis_embed" not in k})


def damage_truncated(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def damage_shape(folder):
    edit_config(folder, intermediate_size=128)


def damage_missing_layer(folder):
    edit_weights(folder, lambda state: {k: v for k, v in state.items() if "layers.1." not in k})


def damage_kind(folder):
    edit_config(folder, model_type="llama")


def damage_no_config(folder):
    (folder / "config.json").unlink()


def damage_bad_json(folder):
    (folder / "config.json").write_text("{")


def damage_no_weights(folder):
    (folder / "model.safetensors").unlink()


def damage_lost_shard(folder):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "one.safetensors"}}))


def damage_code_in_pickle(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"weights": pytest.raises}, folder / "pytorch_model.bin")


def damage_empty_pickle(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


def damage_config_value(folder):
    edit_config(folder, hidden_size="wide")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_missing_patch_weight, "no vis_embed.weight"),
        (damage_truncated, "damaged or incomplete"),
        (damage_shape, r"is \[96, 64\], but config.json calls for \[128, 64\]"),
        (damage_missing_layer, r"lacks the tensor model.layers.1\."),
        (damage_kind, "'llama' checkpoint, not SAIL"),
        (damage_no_config, "no config.json"),
        (damage_bad_json, "not valid JSON"),
        (damage_no_weights, "no weights"),
        (damage_lost_shard, "lacks 1 of 1 weight files"),
        (damage_code_in_pickle, "objects other than tensors"),
        (damage_empty_pickle, "damaged or incomplete"),
        (damage_config_value, "does not describe a SAIL model"),
    ],
)
def test_damage_is_told_in_one_line(checkpoint, damage, message):
    damage(checkpoint)
    with pytest.raises(CheckpointError, match=message) as error:
        load_backbone(str(checkpoint))
    assert "\n" not in str(error.value)


def test_from_pretrained_refuses_a_blind_model(checkpoint):
    damage_missing_patch_weight(checkpoint)
    with pytest.raises(CheckpointError, match=r"no vis_embed\.weight"):
        SailForCausalLM.from_pretrained(checkpoint)


def test_layers_out_of_range(checkpoint):
    with pytest.raises(UserError, match="has 1 to 3"):
        load_backbone(str(checkpoint), layers=4)


def test_names(tmp_path):
    assert (find_checkpoint("sail-tiny") / "config.json").is_file()
    assert find_checkpoint(str(tmp_path)) == tmp_path
    with pytest.raises(CheckpointError, match="no model 'sail-tny'"):
        find_checkpoint("sail-tny")


def test_a_hub_that_cannot_be_reached(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="pass a local folder"):
        find_checkpoint("nobody/nothing-here")


def test_a_configuration_is_read_without_downloading_weights(checkpoint, monkeypatch):
    asked = []

    def download(name, revision, allow_patterns):
        asked.append(allow_patterns)
        return str(checkpoint)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    described = describe("somebody/sail", "main")
    assert described.num_layers == 3
    small = ["*.json", "*.jinja", "merges.txt"]
    with_weights = [*small, "model*.safetensors"]
    assert asked
    assert all(patterns == small for patterns in asked)
    load_backbone("somebody/sail", revision="main")
    assert [patterns for patterns in asked if patterns != small] == [with_weights]
    edit_config(checkpoint, model_type="mistral", vision_patch_size="drop")
    assert describe("somebody/sail", "main").patch_size == 14
    assert [patterns for patterns in asked if patterns != small] == [with_weights, with_weights]


def test_the_fingerprint_names_all_that_decides_features(checkpoint):
    names = [
        load_backbone(str(checkpoint)).fingerprint(2),
        load_backbone(str(checkpoint), dtype="bfloat16").fingerprint(2),
    ]
    assert names[0] == names[1]
    for changes in ({"rope_parameters": {"rope_type": "default", "rope_theta": 777.0}}, {"rms_norm_eps": 1e-3}):
        edit_config(checkpoint, **changes)
        names.append(load_backbone(str(checkpoint)).fingerprint(2))
    edit_preprocessing(checkpoint, image_mean=[0.5, 0.5, 0.5])
    names.append(load_backbone(str(checkpoint)).fingerprint(2))
    assert len(set(names)) == 4


def edit_preprocessing(folder, **changes):
    path = folder / "preprocessor_config.json"
    stored = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(stored | {"image_processor_type": "SailImageProcessor"} | changes))


def test_the_images_are_prepared_as_the_checkpoint_says(checkpoint):
    edit_preprocessing(checkpoint, size={"height": 28, "width": 42}, resample=3, max_tokens=50)
    backbone, image = load_backbone(str(checkpoint)), noise(50, 70)
    features = backbone.encode([image])[0]
    assert features.grid_size == (2, 3)
    assert describe(str(checkpoint)).resize == backbone.spec.resize
    inputs = SailImageProcessor.from_pretrained(checkpoint)(Image.fromarray(image), return_tensors="pt")
    prepared = torch.from_numpy(backbone.prepare(image, backbone.spec.resize).views)
    torch.testing.assert_close(backbone.normalize(prepared), inputs["pixel_values"])


def test_random_weights_are_always_the_same(checkpoint):
    first, second = (load_backbone(str(checkpoint), pretrained=False) for _ in range(2))
    assert first.fingerprint(2) == second.fingerprint(2) != load_backbone(str(checkpoint)).fingerprint(2)


def test_saved_models_come_back(tmp_path):
    torch.manual_seed(1)
    model = SailModel(small_config())
    model.save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path))
    patches, grids = torch.randn(6, 588), torch.tensor([(2, 3)])
    with torch.no_grad():
        expected = model(pixel_values=patches, image_grid_hw=grids).last_hidden_state
        encoded = backbone.model(pixel_values=patches, image_grid_hw=grids).last_hidden_state
    assert relative_error(encoded, expected) < 1e-6
