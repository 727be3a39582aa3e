"""Methods whose budget differs between frames: vidcom2, vcast."""

import math
from collections.abc import Sequence

from torch import Tensor

from reference import tokens_per_frame

from .common import CuFrames, Result, cosine, kept, largest, mean, minmax, softmax, unit, videos
from .shares import in_proportion, rounded_total

ALPHAS = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)


def closeness(z: Tensor, center: Tensor) -> float:
    """`sum over alpha of exp(-|z - c|^2 / (2 alpha))`, alpha = 1/8, 1/4, 1/2, 1, 2."""
    squared_distance = (z - center).square().sum().item()
    return sum(math.exp(-squared_distance / (2 * alpha)) for alpha in ALPHAS)


def calm_channels(x: Tensor) -> list[int]:
    """The `floor(D / 2)` channels of least population variance over a video's tokens `[F, N, D]`, ascending."""
    flat = list(x.flatten(0, 1))
    average = mean(flat)
    variance = mean([(token - average).square() for token in flat])
    return largest((-variance).tolist(), len(variance) // 2)


def vidcom2(
    tokens: Tensor, attn: Tensor | None, frame_features: Tensor | None, cu_frames: CuFrames, ratio: float
) -> Result:
    """Keeps the tokens least like their video's and their frame's mean, and more of them in frames unlike the video.

    The variance is that of the tokens as they are, not normalised; z is a token's `calm_channels`, normalised.
    v and f are its closeness to the mean z of the video and of the frame. A frame's share is
    `K (1 + p - mean p)`, p the softmax over frames of `-mean(v) / 0.01`, so that the shares sum to F K. The
    tokens with the lowest v + f are kept.
    """
    _, size, _ = tokens.shape
    count = tokens_per_frame(size, ratio)
    indices: list[int] = []
    for start, x in videos(tokens, cu_frames):
        channels = calm_channels(x)
        z = [[unit(token[channels]) for token in frame] for frame in x]
        video_center = mean([token for frame in z for token in frame])
        frame_centers = [mean(frame) for frame in z]
        v = [[closeness(token, video_center) for token in frame] for frame in z]
        f = [[closeness(token, center) for token in frame] for frame, center in zip(z, frame_centers, strict=True)]
        p = softmax([-sum(scores) / size / 0.01 for scores in v])
        shares = [count * (1 + weight - sum(p) / len(p)) for weight in p]
        for frame, budget in enumerate(in_proportion(shares, count * len(x), size)):
            chosen = largest([-(a + b) for a, b in zip(v[frame], f[frame], strict=True)], budget)
            indices += [(start + frame) * size + n for n in chosen]
    return kept(tokens, indices)


def curvature(features: Sequence[Tensor]) -> list[float]:
    """`1 - cos(g_f - g_(f-1), g_(f+1) - g_f)` of every frame; 1 at both ends.

    A step of at most a millionth of the feature's length counts as 0, since it may be rounding error.
    """

    def step(f: int) -> Tensor:
        difference = features[f] - features[f - 1]
        return difference if difference.norm() > 1e-6 * features[f].norm() else 0 * difference

    values = [1.0] * len(features)
    for f in range(1, len(features) - 1):
        values[f] = 1 - cosine(step(f), step(f + 1))
    return values


def vcast(
    tokens: Tensor, attn: Tensor | None, frame_features: Tensor | None, cu_frames: CuFrames, ratio: float
) -> Result:
    """Keeps more tokens of frames where the video's path bends; within a frame, those unlike its mean and long ones.

    The path is that of the unchanged frame features (frame means where there are none); weights are the softmax
    of curvature / 0.7. A token's score is `1 - cos` to its frame's mean token plus its norm, each scaled to
    [0, 1] within the frame.
    """
    _, size, _ = tokens.shape
    indices: list[int] = []
    for start, x in videos(tokens, cu_frames):
        means = [mean(list(frame)) for frame in x]
        path = means if frame_features is None else list(frame_features[start : start + len(x)].double())
        weights = softmax([bend / 0.7 for bend in curvature(path)])
        for frame, budget in enumerate(in_proportion(weights, rounded_total(len(x), size, ratio), size)):
            unlike = minmax([1 - cosine(token, means[frame]) for token in x[frame]])
            length = minmax([math.sqrt((token * token).sum().item()) for token in x[frame]])
            chosen = largest([a + b for a, b in zip(unlike, length, strict=True)], budget)
            indices += [(start + frame) * size + n for n in chosen]
    return kept(tokens, indices)
