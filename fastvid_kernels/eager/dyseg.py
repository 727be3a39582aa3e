"""DySeg: cut a video into segments where adjacent frames differ (Eq. 1-2; SPEC section 1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Similarities are compared as integers in units of 2**-40: coarse enough that the order of a float64 sum does not
# matter, fine enough to tell the transitions of a static video apart.
_UNITS = 2.0**40
_BELOW_ALL = torch.iinfo(torch.int64).min


def mean_frame_features(tokens: Tensor) -> Tensor:
    """Mean token of each frame, summed in float64 and rounded once: `[F, N, D]` -> float32 `[F, D]`."""
    frames, tokens_per_frame, channels = tokens.shape
    # One frame at a time, in one buffer: a float64 copy of a frame stays in cache, and allocating anew costs more.
    wide = tokens.new_empty(tokens_per_frame, channels, dtype=torch.float64)
    sums = tokens.new_empty(frames, channels, dtype=torch.float64)
    for frame, total in zip(tokens.unbind(0), sums.unbind(0), strict=True):
        torch.sum(wide.copy_(frame), 0, out=total)
    return (sums / tokens_per_frame).to(torch.float32)


def transition_similarity(frame_features: Tensor) -> Tensor:
    """Quantised cosine between adjacent frames (Eq. 1): `[F, G]` -> int64 `[F - 1]`, in units of 2**-40.

    A zero feature gives 0; a NaN or infinite one gives a value below all others.
    """
    features = frame_features.to(torch.float64)
    squared_norms = features.square().sum(1)
    dots = (features[:-1] * features[1:]).sum(1)
    scale = squared_norms[:-1] * squared_norms[1:]
    usable = dots.isfinite() & scale.isfinite()
    cosines = torch.where(usable & (scale > 0), dots / scale.sqrt(), 0.0)
    return torch.floor(cosines * _UNITS + 0.5).to(torch.int64).masked_fill(~usable, _BELOW_ALL)


def segment_lengths(similarity: list[int], min_segments: int, tau: float) -> list[int]:
    """Lengths of a video's segments (Eq. 2), from its F - 1 quantised transitions; they sum to F.

    Cut after the `min_segments - 1` least similar transitions (ties: the earlier first) and after every one below tau.
    """
    # No cosine reaches 2, so the clamp changes no comparison and keeps a huge tau an integer.
    threshold = math.floor(max(-2.0, min(2.0, tau)) * _UNITS + 0.5)
    least_similar = sorted(range(len(similarity)), key=similarity.__getitem__)[: min_segments - 1]
    below_tau = (i for i, value in enumerate(similarity) if value < threshold)
    ends = [*sorted({*least_similar, *below_tau}), len(similarity)]
    return [end - start for start, end in zip([-1, *ends], ends, strict=False)]
