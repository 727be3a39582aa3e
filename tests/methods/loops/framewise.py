"""Methods that look at one frame at a time: uniform, random, pool, attention, visionzip. K = floor(N R) a frame."""

import torch
from torch import Tensor

from reference import salient_tokens, tokens_per_frame

from .common import CuFrames, Result, cosine, first_largest, kept, mean, result


def uniform(
    tokens: Tensor, attn: Tensor | None, frame_features: Tensor | None, cu_frames: CuFrames, ratio: float
) -> Result:
    """Positions `floor(k N / K)`, k = 0 to K-1, of every frame."""
    frames, size, _ = tokens.shape
    count = tokens_per_frame(size, ratio)
    return kept(tokens, [frame * size + k * size // count for frame in range(frames) for k in range(count)])


def check_random(output: Result, tokens: Tensor, ratio: float) -> None:
    """What any seed must give: K distinct ascending positions of every frame, and their tokens unchanged."""
    values, indices = output
    frames, size, _ = tokens.shape
    count = tokens_per_frame(size, ratio)
    listed = indices.tolist()
    assert listed == sorted(set(listed)), "indices must be distinct and ascending"
    assert [index // size for index in listed] == [frame for frame in range(frames) for _ in range(count)]
    assert torch.equal(values, tokens.flatten(0, 1)[indices])


def pool(
    tokens: Tensor, attn: Tensor | None, frame_features: Tensor | None, cu_frames: CuFrames, ratio: float
) -> Result:
    """The mean of run k, positions `floor(k N / K)` to `floor((k+1) N / K) - 1`, at its first position."""
    frames, size, dim = tokens.shape
    count = tokens_per_frame(size, ratio)
    rows: dict[int, Tensor] = {}
    for frame in range(frames):
        for k in range(count):
            first, after = k * size // count, (k + 1) * size // count
            rows[frame * size + first] = mean([tokens[frame, place].double() for place in range(first, after)])
    return result(rows, dim)


def attention(
    tokens: Tensor, attn: Tensor | None, frame_features: Tensor | None, cu_frames: CuFrames, ratio: float
) -> Result:
    """The K tokens of every frame with the largest attention, in ATS's order (SPEC section 3)."""
    if attn is None:
        raise ValueError("attention needs attn")
    frames, size, _ = tokens.shape
    count = tokens_per_frame(size, ratio)
    return kept(
        tokens, [frame * size + place for frame in range(frames) for place in salient_tokens(attn[frame], count)]
    )


def visionzip(
    tokens: Tensor, attn: Tensor | None, frame_features: Tensor | None, cu_frames: CuFrames, ratio: float
) -> Result:
    """Keeps dominant tokens by attention, and contextual ones that stand for the rest.

    Of K, `S = floor((54 K + 32) / 64)` are dominant (attention in ATS's order) and unchanged, `C = K - S`
    contextual. Of the M other tokens, every `max(1, floor(M / C))`-th is a target, up to C targets. The others join
    the target of largest cosine, and the mean of what joined a target is added to it.
    """
    if attn is None:
        raise ValueError("visionzip needs attn")
    frames, size, dim = tokens.shape
    count = tokens_per_frame(size, ratio)
    dominant_count = (54 * count + 32) // 64
    target_count = count - dominant_count
    rows: dict[int, Tensor] = {}
    for frame in range(frames):
        x = tokens[frame].double()
        dominant = salient_tokens(attn[frame], dominant_count)
        rest = [place for place in range(size) if place not in dominant]
        step = max(1, len(rest) // target_count) if target_count else 1
        targets = rest[::step][:target_count]
        joined: dict[int, list[Tensor]] = {target: [] for target in targets}
        for place in rest:
            if targets and place not in targets:
                nearest = first_largest([cosine(x[place], x[target]) for target in targets])
                joined[targets[nearest]].append(x[place])
        for place in dominant:
            rows[frame * size + place] = x[place]
        for target, members in joined.items():
            rows[frame * size + target] = x[target] + mean(members) if members else x[target]
    return result(rows, dim)
