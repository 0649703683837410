import pytest
import torch

from sail_encoder.backbones.pooling import generalized_mean, pool, pool_grid
from sail_encoder.io.errors import UserError

GRID = torch.tensor([[[1.0, -2.0], [3.0, 4.0]]])
TOKEN = torch.tensor([7.0, 8.0])


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("mean", [2, 1]),
        ("max", [3, 4]),
        ("gem", [(28 / 2) ** (1 / 3), (64 / 2) ** (1 / 3) - (8 / 2) ** (1 / 3)]),
        ("cls", [7, 8]),
        ("cls_mean", [7, 8, 2, 1]),
    ],
)
def test_ways_to_pool(how, expected):
    torch.testing.assert_close(pool_grid(GRID, how, TOKEN), torch.tensor(expected).float())
    torch.testing.assert_close(pool_grid(GRID.bfloat16(), how, TOKEN.bfloat16()), torch.tensor(expected).float())


@pytest.mark.parametrize("how", ["mean", "max", "gem", "cls", "cls_mean"])
def test_packed_images_are_pooled_each_by_itself(how):
    generator = torch.Generator().manual_seed(0)
    grids = [torch.randn(rows, columns, 5, generator=generator) for rows, columns in [(2, 3), (1, 1), (4, 2)]]
    tokens = torch.randn(3, 5, generator=generator)
    packed = torch.cat([grid.flatten(0, 1) for grid in grids])
    together = pool(packed, torch.tensor([6, 1, 8]), how, tokens)
    alone = torch.stack([pool_grid(grid, how, token) for grid, token in zip(grids, tokens, strict=True)])
    torch.testing.assert_close(together, alone)


def test_the_generalized_mean_lies_between_mean_and_max():
    patches, counts = torch.rand(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([4, 2])
    torch.testing.assert_close(generalized_mean(patches, counts, 1), pool(patches, counts, "mean"))
    torch.testing.assert_close(generalized_mean(patches, counts, 500), pool(patches, counts, "max"), rtol=0.01, atol=0)
    assert generalized_mean(torch.zeros(2, 3), torch.tensor([2])).tolist() == [[0, 0, 0]]
    assert generalized_mean(torch.full((2, 1), 1e30), torch.tensor([2])).isfinite().all()


def test_what_cannot_be_pooled():
    with pytest.raises(UserError, match="pooling 'avg' is unknown; use mean, max, gem, cls, cls_mean"):
        pool_grid(GRID, "avg")
    with pytest.raises(UserError, match="pooling 'cls_mean' needs a class token, but this backbone has none"):
        pool_grid(GRID, "cls_mean")
