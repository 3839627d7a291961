"""The numbers against formulas written out another way, and against the library that defines one of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from comfyui_aitk.pipelines.compare import perceptual
from comfyui_aitk.pipelines.compare.heat import LEGEND, heat_map
from comfyui_aitk.pipelines.compare.measure import difference
from comfyui_aitk.pipelines.errors import InputError
from hypothesis import given
from hypothesis import strategies as st
from skimage import metrics


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
    first = np.random.default_rng(0).integers(0, 256, (32, 40, 3), np.uint8)
    assert perceptual.ssim(first, first).value == pytest.approx(1)
    assert perceptual.ssim(first, 255 - first).value < 0
    assert "below 11 pixels" in perceptual.ssim(first[:8], first[:8]).reason


def test_lpips_is_that_of_its_package(tmp_path, monkeypatch):
    """With random weights of AlexNet: nothing is fetched, and what is missing or damaged is named."""
    lpips = pytest.importorskip("lpips", reason="lpips is not installed")
    models = pytest.importorskip("torchvision", reason="torchvision is not installed").models
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("socket.socket.connect", lambda *given: pytest.fail("it asks a network"))
    perceptual._network.cache_clear()
    random = np.random.default_rng(0)
    first = random.integers(0, 256, (96, 128, 3), np.uint8)
    second = (first.astype(int) + random.integers(-20, 21, first.shape)).clip(0, 255).astype(np.uint8)
    name = "alexnet-owt-7be5be79.pth"
    assert perceptual.lpips(first, second) == perceptual.Score(
        None, f"AlexNet's weights are not on the disk: put {name} into torch's hub/checkpoints"
    )
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / name).write_bytes(b"cut off")
    assert perceptual.lpips(first, second).reason.startswith(f"AlexNet cannot be loaded from {name} in torch's hub")
    torch.save(models.alexnet(weights=None).state_dict(), folder / name)
    direct = lpips.LPIPS(net="alex", verbose=False).eval()
    with torch.no_grad():
        expected = float(direct(lpips.im2tensor(first), lpips.im2tensor(second)))
    assert expected > 1e-3
    assert perceptual.lpips(first, second).value == pytest.approx(expected, rel=1e-5)
    assert perceptual.lpips(first, first).value == 0
    assert perceptual.lpips(first[:31], second[:31]).value is not None
    assert perceptual.lpips(first[:30], second[:30]).reason == "a side is below 31 pixels"
    perceptual._network.cache_clear()


def test_ssim_and_psnr_are_those_of_scikit_image():
    random = np.random.default_rng(0)
    first = np.kron(random.integers(0, 256, (6, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    second = (first.astype(int) + random.integers(-9, 10, first.shape)).clip(0, 255).astype(np.uint8)
    assert difference(first, second).psnr == pytest.approx(metrics.peak_signal_noise_ratio(first, second))
    # channel by channel, and with the window written out
    each = [
        metrics.structural_similarity(
            first[..., channel], second[..., channel], win_size=11, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False, data_range=255,
        )
        for channel in range(3)
    ]  # fmt: skip
    assert perceptual.ssim(first, second).value == pytest.approx(np.mean(each))
