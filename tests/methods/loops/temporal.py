"""Methods that compare a token with the token at the same place of an earlier frame: dycoke, evs."""

from torch import Tensor

from reference.budgets import MILLION, millionths

from .common import CuFrames, Result, cosine, kept, largest, videos

COMPARED_WITH = {1: 0, 2: 0, 3: 2}
"""Place in a group of four frames, and the place of the frame it is compared with; place 0 stays whole."""


def dycoke(
    tokens: Tensor, attn: Tensor | None, frame_features: Tensor | None, cu_frames: CuFrames, ratio: float
) -> Result:
    """Token temporal merging, in groups of four frames from a video's start; the last group may be incomplete.

    Each frame but a group's first keeps the `floor(N (4R - 1) / 3)` tokens (none below R = 1/4) least similar to
    the same place of the frame that `COMPARED_WITH` names, as it was before pruning.
    """
    _, size, _ = tokens.shape
    count = max(0, size * (4 * millionths(ratio) - MILLION) // (3 * MILLION))
    indices: list[int] = []
    for start, x in videos(tokens, cu_frames):
        for frame in range(len(x)):
            place = frame % 4
            if place == 0:
                chosen = list(range(size))
            else:
                other = frame - place + COMPARED_WITH[place]
                chosen = largest([-cosine(x[frame, n], x[other, n]) for n in range(size)], count)
            indices += [(start + frame) * size + n for n in chosen]
    return kept(tokens, indices)


def evs(
    tokens: Tensor, attn: Tensor | None, frame_features: Tensor | None, cu_frames: CuFrames, ratio: float
) -> Result:
    """Keeps a video's first frame whole, and of all its other tokens those least similar to the frame before.

    `max(N, floor(F N R))` tokens a video, `1 - cos` ranked over the whole video.
    """
    _, size, _ = tokens.shape
    indices: list[int] = []
    for start, x in videos(tokens, cu_frames):
        total = max(size, len(x) * size * millionths(ratio) // MILLION)
        changes = [-cosine(x[frame, n], x[frame - 1, n]) for frame in range(1, len(x)) for n in range(size)]
        first = start * size
        indices += range(first, first + size)
        indices += [first + size + place for place in largest(changes, total - size)]
    return kept(tokens, indices)
