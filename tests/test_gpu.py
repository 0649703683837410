"""What only a CUDA GPU runs: the variable-length kernel, asynchronous copies, compiled decoding. Skipped elsewhere."""

import pytest
import torch
from helpers import GOLDEN, GOLDEN_IDS, golden_cases, golden_inputs, relative_error, save_images
from test_packing import expected_attention

from evals.scenes import draw_scene
from sail_encoder import FeatureFolder, SailForCausalLM, Sampling, extract, load_backbone, load_chat
from sail_encoder.models.sail.packed_images import cumulative, packed_attention

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_attention_stays_within_images(dtype, tolerance):
    torch.manual_seed(0)
    lengths = [3, 3, 7, 1, 7, 300]
    query, key, value = (torch.randn(sum(lengths), heads, 64) for heads in (4, 2, 2))
    on_device = (x.to("cuda", dtype) for x in (query, key, value))
    out = packed_attention(*on_device, lengths, cumulative(torch.tensor(lengths)).cuda(), 0.125)
    assert relative_error(out.cpu(), expected_attention(query, key, value, lengths, 0.125)) < tolerance


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bfloat16", 5e-2)])
def test_features_are_those_of_the_processor(tmp_path, precision, tolerance):
    photographs = save_images(tmp_path / "images", 24)
    for device, dtype in (("cpu", "float32"), ("cuda", precision)):
        out = str(tmp_path / device)
        assert extract([str(photographs)], out, devices=device, precision=dtype, store_dtype="float32") == 0
    here, there = (FeatureFolder(tmp_path / device) for device in ("cpu", "cuda"))
    assert len(here) == len(there) == 24
    for entry in here.entries:
        assert relative_error(torch.tensor(there[entry.path]), torch.tensor(here[entry.path])) < tolerance


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_image_has_the_same_features_in_any_batch(precision):
    backbone = load_backbone(device="cuda", dtype=precision)
    images = [draw_scene(seed).image[: 200 - 30 * seed] for seed in range(4)]
    together = backbone.encode(images)
    for image, features in zip(images, together, strict=True):
        [alone] = backbone.encode([image])
        assert relative_error(features.grid.float().cpu(), alone.grid.float().cpu()) < 1e-2


@pytest.mark.parametrize(
    "options", [{}, {"cache_implementation": "static", "disable_compile": True}, {"cache_implementation": "static"}]
)
def test_the_published_answers(options):
    model = SailForCausalLM.from_pretrained(GOLDEN / "checkpoint", **GOLDEN_IDS).cuda()
    for case in list(golden_cases())[:2]:
        inputs = {name: value.cuda() for name, value in golden_inputs([case]).items()}
        output = model.generate(**inputs, do_sample=False, max_new_tokens=16, pad_token_id=0, **options)
        assert output[0, inputs["input_ids"].shape[1] :].tolist() == case.tensors["generated"].tolist()


def test_answers_are_those_of_the_processor():
    image, sampling = draw_scene(3).image, Sampling(max_new_tokens=8)
    said = [
        load_chat(device=device, dtype="float32").ask("What color is it?", image, sampling)
        for device in ("cpu", "cuda")
    ]
    assert said[0] == said[1]
