"""DySeg: where a video is cut into segments (Eq. 1-2, SPEC section 1)."""

import math
from collections.abc import Sequence
from fractions import Fraction

from torch import Tensor

BELOW_ALL = -math.inf
"""The quantised transition next to a non-finite feature: smaller than every integer, and than every tau."""


def mean_frame_features(tokens: Tensor) -> Tensor:
    """Global feature of each frame when none is given: the mean of its tokens (SPEC section 1).

    `tokens [F, N, D]`, any float dtype, gives `[F, D]` float32: summed in float64, rounded once.
    """
    return (tokens.double().sum(dim=1) / tokens.shape[1]).float()


def quantise(value: float) -> int | float:
    """`floor(2**40 * value + 1/2)` as an integer of any size; a non-finite value gives `BELOW_ALL`.

    Rational arithmetic, so that a huge tau neither overflows nor rounds.
    """
    if not math.isfinite(value):
        return BELOW_ALL
    return math.floor(Fraction(value) * 2**40 + Fraction(1, 2))


def transition_similarity(feature: Tensor, following: Tensor) -> float:
    """Cosine of two neighbouring frames' features `[G]`, in float64 (Eq. 1).

    A zero vector gives 0. NaN is returned where a product of the features is NaN or infinite. SPEC does not
    say which rule comes first when a zero vector meets a non-finite one: here it is NaN.
    """
    feature, following = feature.double(), following.double()
    dot = (feature * following).sum().item()
    norm_product = (feature * feature).sum().item() * (following * following).sum().item()
    if not (math.isfinite(dot) and math.isfinite(norm_product)):
        return math.nan
    if norm_product == 0:
        return 0.0
    return dot / math.sqrt(norm_product)


def quantised_transitions(frame_features: Tensor) -> list[int | float]:
    """The F-1 transitions of a video with features `[F, G]`, quantised to 2**-40 (Eq. 1, SPEC section 1)."""
    return [
        quantise(transition_similarity(frame_features[frame], frame_features[frame + 1]))
        for frame in range(len(frame_features) - 1)
    ]


def select_cuts(transitions: Sequence[int | float], min_segments: int, tau: float) -> list[int]:
    """Frames after which the video is cut, ascending (Eq. 2).

    `transitions` are quantised. The video is cut at the `min_segments - 1` smallest (ties: lower frame first)
    and at all below `tau`. SPEC ranks a non-finite transition "below all others". Here it is also below every
    tau, so it is always a cut, even if it is not among the `min_segments - 1` smallest.
    """
    by_similarity = sorted(range(len(transitions)), key=lambda frame: (transitions[frame], frame))
    least_similar = by_similarity[: min_segments - 1]
    threshold = quantise(tau)
    dissimilar = [frame for frame, transition in enumerate(transitions) if transition < threshold]
    return sorted({*least_similar, *dissimilar})


def segments_between(cuts: Sequence[int], num_frames: int) -> list[tuple[int, int]]:
    """Half-open frame ranges `(start, end)` between the cuts of a video (Eq. 2); none if it has no frames."""
    if num_frames == 0:
        return []
    starts = [0, *(cut + 1 for cut in cuts)]
    ends = [*starts[1:], num_frames]
    return list(zip(starts, ends, strict=True))
