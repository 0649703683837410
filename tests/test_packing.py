import numpy as np
import torch

from sail_encoder import load_backbone
from sail_encoder.backbones.batch import Prepared, group_consecutive
from sail_encoder.images.geometry import Geometry
from sail_encoder.models.sail.packed_images import cumulative, packed_attention, runs_of_equal_length

RAW = load_backbone("raw/2")


def patched(rows, columns, value):
    patches = np.full((rows * columns, 12), value, np.uint8)
    size = (rows * 2, columns * 2)
    return Prepared(patches, Geometry(size, size, (rows, columns)), rows * columns)


def test_groups_fill_the_budget_and_no_more():
    groups = list(group_consecutive([5, 5, 3, 20, 1, 1], lambda size: size, 10))
    assert groups == [[5, 5], [3], [20], [1, 1]]


def test_a_run_that_resumes_behind_a_group_forms_the_same_groups():
    sizes = np.random.default_rng(0).integers(1, 30, 200).tolist()
    groups = list(group_consecutive(sizes, lambda size: size, 64))
    for done in range(len(groups)):
        rest = [size for group in groups[done:] for size in group]
        assert list(group_consecutive(rest, lambda size: size, 64)) == groups[done:]


def test_packing_and_splitting_keep_images_apart_and_in_order():
    images = [patched(3, 4, 1), patched(1, 2, 2), patched(4, 3, 3), patched(1, 1, 4)]
    pack = RAW.collate(images)
    lengths = pack.lengths
    assert lengths == sorted(lengths)
    grids = pack.split(pack.views[0].float())
    assert [tuple(grid.shape) for grid in grids] == [(3, 4, 12), (1, 2, 12), (4, 3, 12), (1, 1, 12)]
    assert [grid.unique().tolist() for grid in grids] == [[1.0], [2.0], [3.0], [4.0]]


def expected_attention(query, key, value, lengths, scale):
    """Attention of each image in full to itself, from its definition."""
    outputs = []
    for q, k, v in zip(*(x.split(lengths) for x in (query, key, value)), strict=True):
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        weights = (torch.einsum("qhd,khd->hqk", q, k) * scale).softmax(-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, v))
    return torch.cat(outputs)


def test_attention_stays_within_segments():
    torch.manual_seed(0)
    lengths = [3, 3, 7, 1, 7]
    query, key, value = torch.randn(21, 4, 8), torch.randn(21, 2, 8), torch.randn(21, 2, 8)
    assert runs_of_equal_length(lengths) == [(2, 3), (1, 7), (1, 1), (1, 7)]
    out = packed_attention(query, key, value, lengths, cumulative(torch.tensor(lengths)), 0.3)
    torch.testing.assert_close(out, expected_attention(query, key, value, lengths, 0.3))
