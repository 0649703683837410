"""Cosine similarity between patches."""

import numpy as np
import pytest

from sail_encoder.pictures.similarity import best_patch, cosine_map, mutual_matches, score_range


def grid(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_a_patch_is_most_like_itself():
    features = grid(0, 5, 7, 12)
    scores = cosine_map(features[3, 4], features)
    assert scores[3, 4] == pytest.approx(1)
    assert best_patch(scores) == (3, 4)
    expected = features[1, 2] @ features[3, 4] / np.linalg.norm(features[1, 2]) / np.linalg.norm(features[3, 4])
    assert scores[1, 2] == pytest.approx(expected, abs=1e-6)
    assert (cosine_map(features[0, 0], np.zeros((2, 2, 12))) == 0).all()


def test_the_query_is_left_out_of_the_range():
    features = grid(1, 4, 4, 8)
    scores = cosine_map(features[0, 0], features)
    others = np.delete(scores.ravel(), 0)
    assert score_range([scores], [(0, 0)]) == (others.min(), others.max())
    assert score_range([scores, scores], [(0, 0), None])[1] == pytest.approx(1)
    assert score_range([np.ones((1, 1))], [(0, 0)]) == (1, 1)


@pytest.mark.parametrize("shift", [(0, 0), (2, 1), (-1, 3)])
def test_a_shifted_copy_is_matched_with_its_shift(shift):
    scene = grid(2, 14, 16, 24)
    down, across = shift
    first = scene[3:11, 3:13]
    second = scene[3 + down : 11 + down, 3 + across : 13 + across]
    pairs, strength = mutual_matches(first, second)
    certain = pairs[strength > 0.999]
    assert len(certain) == (8 - abs(down)) * (10 - abs(across))
    assert ((certain[:, :2] - certain[:, 2:]) == shift).all()
    assert (np.diff(strength) <= 0).all()


def test_matches_are_mutual():
    first, second = grid(3, 4, 5, 6), grid(4, 3, 7, 6)
    pairs, strength = mutual_matches(first, second)
    assert 0 < len(pairs) <= 20
    for (row, column, other_row, other_column), similarity in zip(pairs, strength, strict=True):
        assert best_patch(cosine_map(first[row, column], second)) == (other_row, other_column)
        assert best_patch(cosine_map(second[other_row, other_column], first)) == (row, column)
        assert cosine_map(first[row, column], second).max() == pytest.approx(similarity, abs=1e-6)
