"""simple_cluster: spherical k-means of a whole video."""

import math

import torch
from torch import Tensor

from reference import tokens_per_frame

from .common import CuFrames, Result, first_largest, mean, result, unit, videos

ROUNDS = 10
BASE = 10000.0


def rotated(vector: Tensor, position: tuple[int, int, int]) -> Tensor:
    """`vector [D]` turned by its position (t, h, w).

    Each axis has `g = 2 floor(D / 6)` channels, t first, then h, then w; the last `D - 3g` stay. Of a group,
    channels 2i and 2i+1 turn by `position * 10000 ** (-2i / g)`.
    """
    width = 2 * (len(vector) // 6)
    turned = vector.clone()
    for axis, coordinate in enumerate(position):
        for i in range(width // 2):
            angle = coordinate * BASE ** (-2 * i / width)
            first = axis * width + 2 * i
            a, b = vector[first].item(), vector[first + 1].item()
            turned[first] = a * math.cos(angle) - b * math.sin(angle)
            turned[first + 1] = a * math.sin(angle) + b * math.cos(angle)
    return turned


def simple_cluster(
    tokens: Tensor, attn: Tensor | None, frame_features: Tensor | None, cu_frames: CuFrames, ratio: float
) -> Result:
    """Spherical k-means of a video's rotated unit tokens into `M = F K` clusters; output is the means of the originals.

    t counts the video's frames; h and w are the position's quotient and remainder by `ceil(sqrt(N))`. The first
    centres are the vectors of tokens `floor(k F N / M)`. Ten rounds: every token joins the centre of largest dot
    product (of equal ones, the first), then every centre becomes the normalised sum of its members, or stays if it
    has none. The members are those of the tenth round; a cluster's mean has the index of its first member, and a
    cluster without members gives no row.
    """
    _, size, dim = tokens.shape
    count = tokens_per_frame(size, ratio)
    side = math.isqrt(size - 1) + 1
    output: dict[int, Tensor] = {}
    for start, x in videos(tokens, cu_frames):
        total = len(x) * size
        places = [(frame, n // side, n % side) for frame in range(len(x)) for n in range(size)]
        originals = list(x.flatten(0, 1))
        vectors = [rotated(unit(token), place) for token, place in zip(originals, places, strict=True)]
        centers = torch.stack([vectors[k * total // (len(x) * count)] for k in range(len(x) * count)])
        members: list[list[int]] = []
        for _ in range(ROUNDS):
            members = [[] for _ in centers]
            for place, vector in enumerate(vectors):
                members[first_largest((centers * vector).sum(dim=1).tolist())].append(place)
            for k, joined in enumerate(members):
                if joined:
                    centers[k] = unit(mean([vectors[place] for place in joined]))
        for joined in members:
            if joined:
                output[start * size + joined[0]] = mean([originals[place] for place in joined])
    return result(output, dim)
