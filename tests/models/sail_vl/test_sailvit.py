"""The towers alone."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from sail_vl_golden import GOLDEN, golden_set, save_activations
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel, InternVLVisionConfig, InternVLVisionModel

from sail_encoder.io.errors import CheckpointError, UserError
from sail_encoder.models.sail_vl.configuration_sail_vl import InternViTConfig, SailViTConfig
from sail_encoder.models.sail_vl.modeling_sailvit import InternViTModel, SailViTModel, interpolate_positions

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
RECORDED = load_file(GOLDEN / "sailvit" / "case0.safetensors")


@pytest.fixture(params=["", "vision_model."], ids=["plain", "prefixed"])
def sailvit_folder(request, copy_of):
    """A SAILViT alone, with either form of names."""
    folder = copy_of("sailvit")
    tensors = load_file(folder / "model.safetensors")
    save_file({request.param + name: x for name, x in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def load_small_internvit(**changes):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return InternViTModel(InternViTConfig(**{**sizes, "image_size": 56, **changes})).eval().requires_grad_(False)


@torch.no_grad()
def test_published_sailvit(sailvit_folder):
    model = SailViTModel.from_pretrained(sailvit_folder).eval()
    out = model(RECORDED["pixel_values"], output_hidden_states=True)
    assert_close(out.hidden_states[0], RECORDED["embeddings"], **CLOSE)
    assert_close(torch.stack(out.hidden_states[1:]), RECORDED["hidden_states"], **CLOSE)
    assert_close(out.last_hidden_state, RECORDED["last_hidden_state"], **CLOSE)


def test_auto_classes_know_it_and_ask_nothing(sailvit_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run remote code"))
    assert isinstance(AutoConfig.from_pretrained(sailvit_folder), SailViTConfig)
    model = AutoModel.from_pretrained(sailvit_folder)
    assert isinstance(model, SailViTModel)
    model.save_pretrained(tmp_path / "native")
    again = AutoModel.from_pretrained(tmp_path / "native")
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in model.state_dict().items())
    assert "auto_map" not in (tmp_path / "native" / "config.json").read_text()


@pytest.mark.parametrize(("name", "tower"), [("sail_vl2", SailViTModel), ("sail_vl_internvit", InternViTModel)])
def test_a_tower_is_taken_out_of_a_whole_model(name, tower):
    golden = golden_set(name)
    model = tower.from_pretrained(golden.checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        last = model(golden.tensors()["tiles"]).last_hidden_state
    assert_close(last, golden.tensors()["vit_last_hidden_state"], **CLOSE)


def test_the_other_tower_is_refused():
    with pytest.raises(UserError, match="is a 'internvit', not a 'sailvit'"):
        SailViTModel.from_pretrained(golden_set("sail_vl_internvit").checkpoint)


def test_a_wider_image_as_the_published_internvit_sees_it():
    golden = golden_set("sail_vl_internvit")
    recorded = golden.tensors()
    with torch.no_grad():
        last = golden.load().vision_model(recorded["wide_pixels"]).last_hidden_state
    assert_close(last, recorded["wide_last_hidden_state"], **CLOSE)


def test_positions_of_another_grid_stay_where_they_belong():
    """The published SAILViT takes the first rows; here a constant over columns stays one."""
    positions = torch.arange(4.0)[:, None].expand(4, 4).reshape(1, 16, 1)
    assert interpolate_positions(positions, (4, 4)) is positions
    narrow = interpolate_positions(positions, (4, 2)).reshape(4, 2)
    assert_close(narrow, torch.arange(4.0)[:, None].expand(4, 2))
    large = interpolate_positions(positions.bfloat16(), (8, 6))
    assert large.shape == (1, 48, 1)
    assert large.dtype == torch.bfloat16


def test_another_size_than_the_published_code_allows(sailvit_folder):
    model = SailViTModel.from_pretrained(sailvit_folder).eval()
    with torch.no_grad():
        small = model(RECORDED["small_pixel_values"]).last_hidden_state
        large = model(torch.zeros(1, 3, 70, 84)).last_hidden_state
    assert small.shape == RECORDED["small_last_hidden_state_sliced"].shape
    assert not torch.allclose(small, RECORDED["small_last_hidden_state_sliced"], atol=1e-2)
    assert large.shape == (1, 30, 64)


@pytest.mark.parametrize("shape", [(1, 3, 57, 56), (1, 1, 56, 56), (3, 56, 56), (1, 3, 0, 56)])
def test_what_patches_do_not_tile_is_refused(shape):
    with pytest.raises(UserError, match=r"cannot be cut into patches; pass \[n, 3, 14\*a, 14\*b\]"):
        load_small_internvit()(torch.zeros(shape))


def test_the_numbers_of_transformers_own_internvit():
    """The same network under other names: `InternVLVisionModel` with separate query, key and value."""
    ours = load_small_internvit(initializer_range=0.2)
    sizes = {name: getattr(ours.config, name) for name in ("hidden_size", "intermediate_size", "num_hidden_layers")}
    config = InternVLVisionConfig(**sizes, num_attention_heads=4, image_size=56, attention_bias=True)
    theirs = InternVLVisionModel(config).eval()
    renamed = {}
    for name, x in ours.state_dict().items():
        name = name.replace("encoder.layers", "encoder.layer").replace("class_embedding", "cls_token")
        name = name.replace("patch_embedding", "patch_embeddings.projection")
        name = name.replace("position_embedding", "position_embeddings").replace(
            "attn.proj", "attention.projection_layer"
        )
        name = name.replace("norm1", "layernorm_before").replace("norm2", "layernorm_after")
        name = name.replace("ls1", "lambda_1").replace("ls2", "lambda_2")
        if "attn.qkv" in name:
            for part, chunk in zip("qkv", x.chunk(3), strict=True):
                renamed[name.replace("attn.qkv", f"attention.{part}_proj")] = chunk
        else:
            renamed[name] = x
    theirs.load_state_dict(renamed)
    pixels = torch.randn(2, 3, 56, 84, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert_close(ours(pixels).last_hidden_state, theirs(pixels).last_hidden_state, **CLOSE)


def test_only_blocks_up_to_the_deepest_layer_run(sailvit_folder):
    model = SailViTModel.from_pretrained(sailvit_folder).eval()
    ran = []
    for index, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    with torch.no_grad():
        states = model.intermediate_states(RECORDED["pixel_values"], [0, 1])
    assert ran == [0, 1]
    assert_close(torch.stack(list(states.values())), RECORDED["hidden_states"][:2], **CLOSE)


def test_residuals_are_contiguous(sailvit_folder):
    model = SailViTModel.from_pretrained(sailvit_folder)
    assert all(hidden.is_contiguous() for hidden in model.residual_stream(RECORDED["pixel_values"]))


def test_attention_maps(sailvit_folder):
    model = SailViTModel.from_pretrained(sailvit_folder).eval()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model(RECORDED["pixel_values"], output_attentions=True)
    assert [tuple(maps.shape) for maps in out.attentions] == [(2, 2, 16, 16)] * 3
    assert_close(out.attentions[0].sum(-1), torch.ones(2, 2, 16))
    assert_close(out.last_hidden_state, RECORDED["last_hidden_state"], **CLOSE)


@pytest.mark.parametrize(
    "build", [load_small_internvit, lambda: SailViTModel.from_pretrained(GOLDEN / "sailvit/checkpoint")]
)
def test_gradient_checkpointing_gives_the_same_gradients(build):
    plain = build().requires_grad_(True).train()
    saving = copy.deepcopy(plain)
    save_activations(saving)
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    for model in (plain, saving):
        model(pixels).last_hidden_state.square().mean().backward()
    for (name, expected), given in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert expected.grad is not None, name
        assert_close(given.grad, expected.grad)


def test_random_weights_are_drawn_for_positions_too():
    model = load_small_internvit(initializer_range=0.5)
    assert 0.3 < float(model.embeddings.position_embedding.std()) < 0.7
    assert float(model.encoder.layers[0].ls1.mean()) == 1.0


def test_missing_and_unknown_tensors_are_errors(sailvit_folder):
    file = sailvit_folder / "model.safetensors"
    tensors = load_file(file)
    prefix = "vision_model." if any(name.startswith("vision_model.") for name in tensors) else ""
    last = tensors.pop(f"{prefix}trunk.post_trunk_norm.weight")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors, first trunk\.post_trunk_norm\.weight"):
        SailViTModel.from_pretrained(sailvit_folder)
    extra = {f"{prefix}trunk.post_trunk_norm.weight": last, f"{prefix}trunk.blocks.9.norm_1.weight": last.clone()}
    save_file({**tensors, **extra}, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match="has 1 unknown tensors"):
        SailViTModel.from_pretrained(sailvit_folder)
