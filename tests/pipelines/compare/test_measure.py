"""The numbers against formulas written out another way, and against the library that defines one of them."""

from __future__ import annotations

import numpy as np
import pytest
from comfyui_aitk.pipelines.compare import perceptual
from comfyui_aitk.pipelines.compare.heat import LEGEND, heat_map
from comfyui_aitk.pipelines.compare.measure import difference
from comfyui_aitk.pipelines.errors import InputError
from hypothesis import given
from hypothesis import strategies as st


@st.composite
def pairs(draw):
    """Two pictures of one size, as near or as far apart as it comes."""
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    first = random.integers(0, 256, (height, width, 3), np.uint8)
    spread = draw(st.sampled_from([0, 1, 5, 255]))
    moved = first.astype(int) + random.integers(-spread, spread + 1, first.shape)
    return first, moved.clip(0, 255).astype(np.uint8)


@given(pairs())
def test_numbers_are_those_of_their_formulas(pair):
    first, second = pair
    found = difference(first, second)
    apart = [abs(int(a) - int(b)) for a, b in zip(first.ravel(), second.ravel(), strict=True)]
    square = sum(one**2 for one in apart) / len(apart)
    assert (found.values, found.differing) == (len(apart), sum(one > 0 for one in apart))
    assert found.maximum == max(apart)
    assert found.mean == pytest.approx(sum(apart) / len(apart))
    assert found.mean_square == pytest.approx(square)
    assert found.psnr == (np.inf if square == 0 else pytest.approx(20 * np.log10(255 / np.sqrt(square))))


@given(pairs())
def test_agreement_is_the_concordance_of_block_means(pair):
    means = []
    for picture in pair:
        height, width, _ = picture.shape
        blocks = [picture[y : y + 8, x : x + 8] for y in range(0, height, 8) for x in range(0, width, 8)]
        means.append(np.array([block[..., channel].astype(float).mean() for block in blocks for channel in range(3)]))
    a, b = means
    (var_a, covariance), (_, var_b) = np.cov(a, b, bias=True)
    stable = (0.03 * 255) ** 2
    expected = (2 * covariance + stable) / (var_a + var_b + (a.mean() - b.mean()) ** 2 + stable)
    assert difference(*pair).agreement == pytest.approx(expected, abs=1e-9)


@given(pairs())
def test_heat_map_shows_each_pixel_s_largest_difference(pair):
    first, second = pair
    shown = heat_map(first, second)
    for y, x in np.ndindex(first.shape[:2]):
        largest = max(abs(int(first[y, x, c]) - int(second[y, x, c])) for c in range(3))
        (colour,) = [colour for low, _, colour in LEGEND if low <= largest < max(2 * low, 1)]
        assert tuple(shown[y, x]) == colour


def test_plain_pictures_agree_as_far_as_their_colours_do():
    black, grey, white = (np.full((9, 9, 3), level, np.uint8) for level in (0, 2, 255))
    assert difference(black, black).agreement == 1
    assert difference(black, grey).agreement > 0.9
    assert difference(black, white).agreement < 0.01


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (np.zeros((8, 9, 3), np.uint8), "8 x 8 and 9 x 8"),
        (np.zeros((8, 8, 4), np.uint8), r"shape \[8, 8, 4\]"),
        (np.zeros((8, 8, 3), np.float32), "type float32"),
        (np.zeros((0, 8, 3), np.uint8), r"shape \[0, 8, 3\]"),
        ("a.png", "'a.png', no picture"),
    ],
)
def test_what_cannot_be_compared_is_named(second, message):
    with pytest.raises(InputError, match=message):
        difference(np.zeros((8, 8, 3), np.uint8), second)


def test_scores_of_missing_libraries_are_none_with_the_reason(monkeypatch):
    picture = np.zeros((64, 64, 3), np.uint8)
    monkeypatch.setattr(perceptual, "find_spec", lambda name: None)
    assert perceptual.ssim(picture, picture) == perceptual.Score(None, "scikit-image is not installed")
    assert perceptual.lpips(picture, picture) == perceptual.Score(None, "lpips is not installed")


def test_ssim_is_scikit_image_s():
    pytest.importorskip("skimage", reason="scikit-image is not installed")
    first = np.random.default_rng(0).integers(0, 256, (32, 40, 3), np.uint8)
    assert perceptual.ssim(first, first).value == pytest.approx(1)
    assert perceptual.ssim(first, 255 - first).value < 0
    assert "below 11 pixels" in perceptual.ssim(first[:8], first[:8]).reason
