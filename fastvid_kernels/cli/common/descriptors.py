"""Video tokens without a vision model: histograms of colour and gradient orientation.

`fastvid demo` runs without weights, so its tokens are hand-made. DySeg and DTM need features whose cosines and
distances are meaningful. Mean RGB values are not suitable: they all lie in one narrow cone, so every cosine is near 1.
Histograms compared by the Hellinger kernel are: the dot product of the square roots of two histograms is their
Bhattacharyya coefficient, which measures their overlap from 0 to 1 (Arandjelović & Zisserman, CVPR 2012).

- A **token** describes one patch of a 14 x 14 grid by two histograms: colour (luma x chroma, jointly) and gradient
  orientation (with a bin for "no gradient").
- A **frame feature** has the same histograms over a 4 x 4 layout, the grid of the GIST scene descriptor (Oliva &
  Torralba, IJCV 2001), so that the cosine of two frames is the mean overlap of what is seen in the same places. It
  stays near 1 while objects move, and falls when the scene changes.
- **Attention** is the patch's contrast: the standard deviation of its luma.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from fastvid_kernels.cli.common.progress import ProgressCallback, no_progress

GRID = 14
TOKENS_PER_FRAME = GRID * GRID

_PATCH = 16  # pixels; a frame is resized to (GRID * _PATCH)², as a vision tower resizes its input
_LAYOUT = 4
_LUMA_BINS = 8
_CHROMA_BINS = 5  # for each of the two chroma axes
_ORIENTATIONS = 8
_FLAT_GRADIENT = 0.05  # mean gradient (luma per pixel) below which a patch counts as partly flat


@dataclass(frozen=True)
class Descriptors:
    """Inputs of the operator, computed from pixels alone.

    Attributes:
        tokens: `[F, 196, D]` float32. Scaled by √D, so that the operator's distance, which divides by √D (SPEC
            section 4), runs from 0 for equal patches to √2 for patches that have nothing in common.
        attn: `[F, 196]` float32, contrast.
        frame_features: `[F, G]` float32, unit norm.
    """

    tokens: Tensor
    attn: Tensor
    frame_features: Tensor


def describe(frames: np.ndarray, on_progress: ProgressCallback = no_progress) -> Descriptors:
    """Describe `frames`, `[F, H, W, 3]` uint8 RGB; `on_progress` is called with (frames done, frames in all)."""
    histograms, contrasts = [], []
    for frame in frames:
        luma, chroma = _luma_and_chroma(frame)
        # Each has half the mass, so that together they form one histogram.
        histograms.append(np.concatenate([_colour(luma, chroma), _gradient(luma)], axis=1) / 2)
        contrasts.append(_patches(luma).std(axis=1))
        on_progress(len(histograms), len(frames))
    patches = torch.from_numpy(np.stack(histograms).astype(np.float32))  # [F, 196, D]
    tokens = patches.sqrt()
    return Descriptors(
        tokens=tokens * math.sqrt(tokens.shape[-1]),
        attn=torch.from_numpy(np.stack(contrasts).astype(np.float32)),
        frame_features=functional.normalize(_pool_to_layout(patches).sqrt().flatten(1), dim=1),
    )


def _luma_and_chroma(frame: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """ITU-R BT.601 luma in [0, 1] and blue and red chroma in [-1, 1], each `[224, 224]`."""
    side = GRID * _PATCH
    resized = Image.fromarray(np.ascontiguousarray(frame)).resize((side, side), Image.Resampling.BILINEAR)
    red, green, blue = np.moveaxis(np.asarray(resized, dtype=np.float32) / 255, 2, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    return luma, ((blue - luma) / 0.886, (red - luma) / 0.701)


def _patches(image: np.ndarray) -> np.ndarray:
    """`[224, 224]` to `[196, 256]`: the pixels of each patch."""
    blocks = image.reshape(GRID, _PATCH, GRID, _PATCH)
    return blocks.swapaxes(1, 2).reshape(TOKENS_PER_FRAME, _PATCH * _PATCH)


def _colour(luma: np.ndarray, chroma: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Joint histogram of luma and chroma per patch, `[196, 200]`, linearly interpolated between bins."""
    luma_bins = _soft_bins(_patches(luma), 0.0, 1.0, _LUMA_BINS)  # [196, 256, 8]
    blue_bins, red_bins = (
        # The square root spreads the colours near grey, where most pixels of natural video are.
        _soft_bins(_patches(np.sign(axis) * np.sqrt(np.abs(axis))), -1.0, 1.0, _CHROMA_BINS)
        for axis in chroma
    )
    chroma_bins = blue_bins[..., :, None] * red_bins[..., None, :]  # [196, 256, 5, 5]
    chroma_bins = chroma_bins.reshape(*chroma_bins.shape[:2], -1)
    joint: np.ndarray = luma_bins.swapaxes(1, 2) @ chroma_bins
    return joint.reshape(TOKENS_PER_FRAME, -1) / _PATCH**2


def _gradient(luma: np.ndarray) -> np.ndarray:
    """Gradient orientations per patch weighted by magnitude, `[196, 9]`; the last bin is for flat areas."""
    padded = np.pad(luma, 1, mode="edge")
    across = (padded[1:-1, 2:] - padded[1:-1, :-2]) / 2
    down = (padded[2:, 1:-1] - padded[:-2, 1:-1]) / 2
    magnitude = _patches(np.hypot(across, down))
    # Orientation is undirected: a bright edge on dark and a dark one on bright are the same edge.
    position = _patches(np.arctan2(down, across) % math.pi) * (_ORIENTATIONS / math.pi)
    offset = (position[..., None] - np.arange(_ORIENTATIONS, dtype=np.float32)) % _ORIENTATIONS
    share = np.maximum(1 - np.minimum(offset, _ORIENTATIONS - offset), 0)  # [196, 256, 8]
    oriented = (share * magnitude[..., None]).mean(axis=1)
    oriented /= np.maximum(oriented.sum(axis=1, keepdims=True), _FLAT_GRADIENT)
    flat = np.maximum(1 - oriented.sum(axis=1, keepdims=True), 0)
    return np.concatenate([oriented, flat], axis=1)


def _soft_bins(values: np.ndarray, low: float, high: float, num_bins: int) -> np.ndarray:
    """Share of each value in each of `num_bins` evenly spaced bins, linear between the two nearest ones."""
    position = (np.clip(values, low, high) - low) * ((num_bins - 1) / (high - low))
    share: np.ndarray = np.maximum(1 - np.abs(position[..., None] - np.arange(num_bins, dtype=np.float32)), 0)
    return share


def _pool_to_layout(patches: Tensor) -> Tensor:
    """Mean histograms of a 4 x 4 layout, `[F, 196, D]` to `[F, D, 4, 4]`."""
    frames, _, channels = patches.shape
    grid = patches.reshape(frames, GRID, GRID, channels).permute(0, 3, 1, 2)
    return functional.adaptive_avg_pool2d(grid, _LAYOUT)
