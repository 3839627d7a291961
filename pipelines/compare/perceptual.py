"""SSIM and LPIPS, by the libraries that define them, where the user has these. Neither decides a verdict."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from ..words import cut

if TYPE_CHECKING:
    from .pixels import Pixels

_SSIM_WINDOW = 11  # pixels; of a Gaussian with sigma 1.5 that is cut off at 3.5 sigma, as scikit-image does
_LPIPS_SIDE = 31  # pixels; AlexNet's layers leave nothing of a smaller picture


@dataclass(frozen=True)
class Score:
    """A measure that needs a library.

    Attributes:
        value: None where it could not be measured.
        reason: why not; empty where it was.
    """

    value: float | None
    reason: str = ""


def ssim(first: Pixels, second: Pixels) -> Score:
    """Structural similarity with the Gaussian window of its authors, by scikit-image: 1 for equal pictures.

    Args:
        first, second: uint8 [H, W, 3] of one size.
    """
    if find_spec("skimage") is None:
        return Score(None, "scikit-image is not installed")
    if min(first.shape[:2]) < _SSIM_WINDOW:
        return Score(None, f"a side is below {_SSIM_WINDOW} pixels")
    try:
        measure: Any = import_module("skimage.metrics").structural_similarity
    except ImportError as error:
        return Score(None, f"scikit-image cannot be imported: {cut(str(error))}")
    value = measure(
        first, second, channel_axis=2, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    return Score(float(value))


def lpips(first: Pixels, second: Pixels) -> Score:
    """Perceptual distance by the package ``lpips`` with AlexNet, on the CPU: 0 for equal pictures.

    Nothing is downloaded: AlexNet's weights must already be in torch's own folder.

    Args:
        first, second: uint8 [H, W, 3] of one size.
    """
    import torch

    for package in ("lpips", "torchvision"):
        if find_spec(package) is None:
            return Score(None, f"{package} is not installed")
    if min(first.shape[:2]) < _LPIPS_SIDE:
        return Score(None, f"a side is below {_LPIPS_SIDE} pixels")
    try:
        weights: Any = import_module("torchvision.models").AlexNet_Weights.IMAGENET1K_V1
    except (ImportError, RuntimeError) as error:
        # a torchvision of another torch raises either
        return Score(None, f"torchvision cannot be imported: {cut(str(error))}")
    file = Path(torch.hub.get_dir(), "checkpoints", os.path.basename(weights.url))
    if not file.is_file():
        return Score(None, f"AlexNet's weights are not on the disk: put {file.name} into torch's hub/checkpoints")
    try:
        network = _network()
    except (EOFError, OSError, RuntimeError, TypeError, UnpicklingError) as error:
        # a file that is cut off, or a torchvision that lpips does not know
        return Score(None, f"AlexNet cannot be loaded from {file.name} in torch's hub/checkpoints: {cut(str(error))}")
    with torch.inference_mode():
        pictures = (torch.from_numpy(one.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1 for one in (first, second))
        return Score(float(network(*pictures)))


@cache
def _network() -> Any:
    with warnings.catch_warnings():
        # of torchvision, about how lpips calls it
        warnings.simplefilter("ignore")
        return import_module("lpips").LPIPS(net="alex", verbose=False).eval()
