"""How far two pictures of one size are apart."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from skimage import metrics  # its functions are imported at their first use

SSIM_WINDOW_PX = 7


@dataclass(frozen=True, slots=True)
class Distance:
    """`psnr_db` with peak 255, None when equal; `ssim` (Wang et al. 2004), 1 when equal; the largest difference."""

    psnr_db: float | None
    ssim: float
    max_difference: int


def distance(a_HWC: NDArray[np.uint8], b_HWC: NDArray[np.uint8]) -> Distance:
    """Between two (H, W, 3) uint8 pictures of one size. Raises ValueError on different sizes."""
    difference = _absolute_difference(a_HWC, b_HWC)
    mean_square = float(np.mean(difference.astype(np.float64) ** 2))
    psnr_db = None if mean_square == 0 else float(10 * np.log10(255**2 / mean_square))
    ssim = metrics.structural_similarity(a_HWC, b_HWC, channel_axis=2, data_range=255, win_size=SSIM_WINDOW_PX)
    return Distance(psnr_db, float(ssim), int(difference.max()))


def difference_map(a_HWC: NDArray[np.uint8], b_HWC: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], int]:
    """Where two (H, W, 3) uint8 pictures differ: a grey (H, W, 3) picture, and how many times it is amplified.

    Grey is the largest absolute difference of the three channels times a whole number that keeps the largest of all
    at most 255; so equal pixels are black, and two equal pictures are black altogether (amplified once).
    Raises ValueError on different sizes.
    """
    difference_HW = _absolute_difference(a_HWC, b_HWC).max(axis=2)
    peak = int(difference_HW.max())
    factor = 255 // peak if peak else 1
    grey_HW = (difference_HW * factor).astype(np.uint8)
    return np.repeat(grey_HW[:, :, None], 3, axis=2), factor


def _absolute_difference(a_HWC: NDArray[np.uint8], b_HWC: NDArray[np.uint8]) -> NDArray[np.int16]:
    if a_HWC.shape != b_HWC.shape:
        raise ValueError(f"{a_HWC.shape} and {b_HWC.shape} cannot be compared")
    return np.abs(a_HWC.astype(np.int16) - b_HWC.astype(np.int16))
