import pytest

from sail_encoder.backbones.layers import check_layers, resolve_layers
from sail_encoder.io.errors import UserError


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (-1, [31]),
        (0, [0]),
        ([-1, 0, 5], [31, 0, 5]),
        ("-1", [31]),
        ("0,11,-1", [0, 11, 31]),
        ("[0, 5]", [0, 5]),
        ("last4", [28, 29, 30, 31]),
        ("even4", [7, 15, 23, 31]),
        ("all", list(range(32))),
    ],
)
def test_specifications(spec, expected):
    assert resolve_layers(spec, 32) == expected


def test_even4_of_24_blocks_ends_at_the_last():
    assert resolve_layers("even4", 24) == [5, 11, 17, 23]
    assert resolve_layers("even4", 12) == [2, 5, 8, 11]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (32, "has -32 to 31"),
        ("-33", "has -32 to 31"),
        ([0, -32], "a layer twice"),
        ([], "no layer"),
        ("first2", "not understood"),
        ("last33", "as many as this model has"),
        ("last0", "as many as this model has"),
    ],
)
def test_errors_say_what_is_allowed(spec, message):
    with pytest.raises(UserError, match=message):
        resolve_layers(spec, 32)


def test_what_is_understood_at_any_depth():
    for spec in ("all", "last4", "even99", "-1", "0,11,23", "[0, 11]", 5, [0, 99]):
        check_layers(spec)
    for spec in ("first", "last", "even-1", "1,x", "", "lastfour"):
        with pytest.raises(UserError, match="are not understood"):
            check_layers(spec)
