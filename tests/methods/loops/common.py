"""What the loops share: videos, output rows, order, and cosines."""

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from reference.pipeline import video_ranges

Result = tuple[Tensor, Tensor]
"""`tokens [M, D]` float64 and `indices [M]` int64."""

CuFrames = Sequence[int] | Tensor | None


def videos(tokens: Tensor, cu_frames: CuFrames) -> Iterator[tuple[int, Tensor]]:
    """First frame and float64 tokens `[F_v, N, D]` of every video that has frames."""
    for start, end in video_ranges(cu_frames, len(tokens)):
        if end > start:
            yield start, tokens[start:end].double()


def result(rows: dict[int, Tensor], dim: int) -> Result:
    """Output rows `[D]` by flat index, in the order of their indices."""
    indices = sorted(rows)
    values = [rows[index] for index in indices]
    stacked = torch.stack(values) if values else torch.empty(0, dim, dtype=torch.float64)
    return stacked, torch.tensor(indices, dtype=torch.int64)


def kept(tokens: Tensor, indices: Iterable[int]) -> Result:
    """The tokens at these flat indices, unchanged."""
    flat = tokens.double().flatten(0, 1)
    return result({index: flat[index] for index in indices}, tokens.shape[2])


def largest(scores: Sequence[float], count: int) -> list[int]:
    """Indices of the `count` largest scores, ascending; of equal ones the lower index, non-finite ones last.

    Scores that differ by rounding alone count as equal.
    """

    def rank(index: int) -> tuple[bool, float, int]:
        score = round(scores[index], 11) if math.isfinite(scores[index]) else scores[index]
        return (False, -score, index) if math.isfinite(score) else (True, 0.0, index)

    return sorted(sorted(range(len(scores)), key=rank)[:count])


def first_largest(scores: Sequence[float]) -> int:
    """Index of the largest score; of equal ones the first."""
    return largest(scores, 1)[0]


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of two vectors; 0 if one of them is zero, exactly 1 if they are equal."""
    norm_product = (a * a).sum().item() * (b * b).sum().item()
    return (a * b).sum().item() / math.sqrt(norm_product) if norm_product != 0 else 0.0


def unit(vector: Tensor) -> Tensor:
    """`vector / |vector|`; a zero vector stays zero."""
    norm = math.sqrt((vector * vector).sum().item())
    return vector / norm if norm != 0 else vector


def mean(vectors: Sequence[Tensor]) -> Tensor:
    """Mean of vectors `[D]`, at least one."""
    total = torch.zeros_like(vectors[0])
    for vector in vectors:
        total = total + vector
    return total / len(vectors)


def minmax(values: Sequence[float]) -> list[float]:
    """Values scaled so that the smallest becomes 0 and the largest 1; all 0 if they are equal."""
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 0.0 for value in values]


def softmax(values: Sequence[float]) -> list[float]:
    """`exp(v) / sum exp(v)`."""
    highest = max(values)
    powers = [math.exp(value - highest) for value in values]
    return [power / sum(powers) for power in powers]
