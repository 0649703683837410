"""Reading checkpoints tensor by tensor: exact keys, only what is needed, and the trap of tied embeddings."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sail_vl_golden import golden_set
from torch.testing import assert_close

from sail_encoder.io.errors import CheckpointError, UserError
from sail_encoder.io.hub import find_checkpoint
from sail_encoder.io.weights import WeightFiles
from sail_encoder.models.sail_vl import published
from sail_encoder.models.sail_vl.checkpoint import (
    PROJECTOR,
    TOWER,
    load_model,
    load_tower,
    load_vision_model,
    open_sail_vl,
    random_tower,
    read_config,
)

CPU = torch.device("cpu")
HEAD, EMBEDDING = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"


def rewrite(folder, change):
    """Lets `change` edit the tensors of a folder."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def shard(folder):
    """Puts each part of a model into a file of its own."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = {part: f"model-{part}.safetensors" for part in ("vision_model", "mlp1", "language_model")}
    for part, file in files.items():
        held = {name: x for name, x in tensors.items() if name.startswith(f"{part}.")}
        save_file(held, folder / file, {"format": "pt"})
    weight_map = {name: files[name.split(".")[0]] for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("name", ["sail_vl_internvit", "sail_vl2"])
def test_the_same_model_as_from_pretrained(name):
    golden = golden_set(name)
    recorded = golden.tensors()
    inputs = {"input_ids": recorded["input_ids"], "pixel_values": recorded["tiles"]}
    ours, theirs = load_model(open_sail_vl(golden.checkpoint), CPU, torch.float32), golden.load()
    with torch.no_grad():
        assert torch.equal(ours(**inputs).logits, theirs(**inputs).logits)
    assert not any(x.is_meta for x in [*ours.parameters(), *ours.buffers()])
    assert ours.generation_config.eos_token_id == theirs.generation_config.eos_token_id == 274
    assert ours.generation_config.pad_token_id == theirs.generation_config.pad_token_id == 272


def test_a_separate_head_is_kept_where_the_configuration_says_tied(monkeypatch):
    """SAIL-VL2's config.json says tied and its file holds both; left as configured, logits are silently wrong."""
    golden = golden_set("sail_vl2")
    stored = load_file(golden.checkpoint / "model.safetensors")
    recorded = golden.tensors()
    inputs = {"input_ids": recorded["input_ids"], "pixel_values": recorded["tiles"]}
    assert json.loads((golden.checkpoint / "config.json").read_text())["llm_config"]["tie_word_embeddings"]
    for model in (golden.load(), load_model(open_sail_vl(golden.checkpoint), CPU, torch.float32)):
        assert torch.equal(model.get_output_embeddings().weight, stored[HEAD])
        assert torch.equal(model.get_input_embeddings().weight, stored[EMBEDDING])
        with torch.no_grad():
            assert_close(model(**inputs).logits, recorded["logits"], rtol=0, atol=1e-4)

    monkeypatch.setattr(published, "_has_language_head", lambda folder: False)
    with pytest.raises(CheckpointError, match=r"has 1 unknown tensors, first language_model\.lm_head\.weight"):
        open_sail_vl(golden.checkpoint)


def test_a_head_that_the_file_leaves_out_is_the_embedding(copy_of):
    folder = rewrite(copy_of("sail_vl2"), lambda tensors: tensors.pop(HEAD))
    model = load_model(open_sail_vl(folder), CPU, torch.float32)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_precision(copy_of):
    model = load_model(open_sail_vl(copy_of("sail_vl2")), CPU, torch.bfloat16)
    assert {x.dtype for x in model.parameters()} == {torch.bfloat16}
    assert model.language_model.model.rotary_emb.inv_freq.dtype == torch.float32


@pytest.mark.parametrize("name", ["sail_vl_internvit", "sail_vl2"])
def test_a_tower_needs_only_its_own_files(name, copy_of):
    folder, recorded = shard(copy_of(name)), golden_set(name).tensors()
    (folder / "model-language_model.safetensors").unlink()
    vision = load_vision_model(open_sail_vl(folder, (TOWER, PROJECTOR)), CPU, torch.float32)
    (folder / "model-mlp1.safetensors").unlink()
    tower = load_tower(open_sail_vl(folder, (TOWER,)), CPU, torch.float32)
    with torch.no_grad():
        assert_close(vision(recorded["tiles"]).pooler_output, recorded["projected"], rtol=1e-5, atol=1e-5)
        assert_close(
            tower(recorded["tiles"]).last_hidden_state, recorded["vit_last_hidden_state"], rtol=1e-5, atol=1e-5
        )
    with pytest.raises(CheckpointError, match="lacks 2 of 3 weight files"):
        open_sail_vl(folder)


def test_the_hub_is_asked_for_no_other_files(copy_of, monkeypatch):
    folder, asked = shard(copy_of("sail_vl2")), []

    def download(name, revision, allow_patterns):
        asked.append([pattern for pattern in allow_patterns if "safetensors" in pattern])
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert find_checkpoint("somebody/model", prefixes=(TOWER,)) == folder
    assert asked == [[], ["model-vision_model.safetensors"]]
    assert find_checkpoint("somebody/model", prefixes=(TOWER, PROJECTOR)) == folder
    assert asked[2:] == [[], ["model-mlp1.safetensors", "model-vision_model.safetensors"]]


def test_only_tensors_of_the_first_blocks_are_read(copy_of, monkeypatch):
    read = []
    original = WeightFiles.read
    monkeypatch.setattr(WeightFiles, "read", lambda self, keys, *rest: original(self, read.extend(keys) or keys, *rest))
    tower = load_tower(open_sail_vl(copy_of("sail_vl_internvit"), (TOWER,)), CPU, torch.float32, layers=2)
    assert len(tower.blocks) == 2
    assert all(name.startswith(TOWER) and ".layers.2." not in name for name in read)
    recorded = golden_set("sail_vl_internvit").tensors()
    with torch.no_grad():
        states = tower.intermediate_states(recorded["tiles"], [1])[1]
    assert_close(states, recorded["vit_hidden_states"][2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_a_tower_alone(prefix, copy_of):
    folder = copy_of("sailvit")
    rewrite(folder, lambda tensors: [tensors.update({prefix + name: tensors.pop(name)}) for name in list(tensors)])
    checkpoint = open_sail_vl(folder)
    assert not checkpoint.has_language_model
    assert checkpoint.tower_prefix == prefix
    recorded = load_file(golden_set("sailvit").folder / "case0.safetensors")
    with torch.no_grad():
        last = load_tower(checkpoint, CPU, torch.float32)(recorded["pixel_values"]).last_hidden_state
    assert_close(last, recorded["last_hidden_state"], rtol=1e-5, atol=1e-5)
    with pytest.raises(CheckpointError, match="is a vision tower alone"):
        load_model(checkpoint, CPU, torch.float32)


@pytest.mark.parametrize("layers", [0, 4])
def test_depths_that_do_not_exist(layers, copy_of):
    with pytest.raises(UserError, match=rf"layers={layers} cannot be loaded; this checkpoint has 1 to 3"):
        load_tower(open_sail_vl(copy_of("sailvit")), CPU, torch.float32, layers)


def test_random_weights_are_always_the_same():
    config = read_config(golden_set("sailvit").checkpoint)
    first, second = (random_tower(config, CPU, torch.float32) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first.parameters(), second.parameters(), strict=True))
    assert not any(x.requires_grad for x in first.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("mlp1.0.bias"), r"lacks 1 tensors, first mlp1\.0\.bias"),
        (lambda t: t.update({"mlp1.7.bias": t["mlp1.0.bias"].clone()}), r"has 1 unknown tensors, first mlp1\.7\.bias"),
        (lambda t: t.update({"mlp1.0.bias": torch.zeros(3)}), r"mlp1\.0\.bias is \[3\], but config\.json calls for"),
        (lambda t: t.update({"mlp1.0.bias": t["mlp1.0.bias"].to(torch.int8)}), r"mlp1\.0\.bias is int8"),
        (
            lambda t: t.update({"mlp1.0.bias": t["mlp1.0.bias"].to(torch.float8_e4m3fn)}),
            "is float8_e4m3fn",
        ),
        (
            lambda t: t.update({"mlp1.1.SCB": torch.zeros(3)}),
            r"int8 of bitsandbytes, by its mlp1\.1\.SCB",
        ),
    ],
)
def test_weights_that_do_not_fit(change, message, copy_of):
    folder = rewrite(copy_of("sail_vl2"), change)
    with pytest.raises(CheckpointError, match=message) as error:
        open_sail_vl(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("mlp1.0.bias"), r"lacks 1 tensors, first mlp1\.0\.bias"),
        (lambda t: t.update({"mlp1.7.bias": torch.zeros(3)}), r"has 1 unknown tensors"),
        (lambda t: t.update({"mlp1.1.SCB": torch.zeros(3)}), "is a quantised checkpoint"),
    ],
)
def test_from_pretrained_is_as_strict(change, message, copy_of):
    folder = rewrite(copy_of("sail_vl2"), change)
    with pytest.raises(CheckpointError, match=message):
        type(golden_set("sail_vl2").load()).from_pretrained(folder)


def test_what_save_pretrained_writes_has_the_published_names(tmp_path):
    golden = golden_set("sail_vl_internvit")
    golden.load().save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as saved:
        names = set(saved.keys())
    assert names == set(load_file(golden.checkpoint / "model.safetensors"))
    recorded = golden.tensors()
    model = load_model(open_sail_vl(tmp_path), CPU, torch.float32)
    with torch.no_grad():
        logits = model(input_ids=recorded["input_ids"], pixel_values=recorded["tiles"]).logits
    assert_close(logits, recorded["logits"], rtol=0, atol=1e-4)
