"""How far the results of two prunings agree. An arm is timed only after this check."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """The agreement with the reference that a backend must reach before it is timed."""

    overlap: float
    relative_error: float
    close_rows: float


# Indices may differ only at near ties, which depend on the order of sums; each also changes what other anchors merge.
# The relative errors allow for rounding a merged token to 24, 8 or 11 bits.
TOLERANCES = {
    "float32": Tolerance(overlap=0.995, relative_error=1e-4, close_rows=0.99),
    "bfloat16": Tolerance(overlap=0.995, relative_error=1e-2, close_rows=0.99),
    "float16": Tolerance(overlap=0.995, relative_error=1e-3, close_rows=0.99),
}


@dataclass(frozen=True)
class Agreement:
    """A result compared with the reference.

    Attributes:
        overlap: share of the reference's indices that the result has too.
        same_indices: whether both have exactly the same indices.
        close_rows: share of the tokens kept by both that are equal within the tolerance.
    """

    overlap: float
    same_indices: bool
    close_rows: float


def agreement(
    result: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor], *, relative_tolerance: float
) -> Agreement:
    """Compare `(tokens [T, D], indices [T])` with a reference; both list distinct indices in ascending order.

    A token is close if the norm of its difference from the reference's token is at most `relative_tolerance` times the
    norm of the latter.
    """
    tokens, indices = result
    reference_tokens, reference_indices = reference
    in_reference = torch.isin(indices, reference_indices)
    in_result = torch.isin(reference_indices, indices)
    expected = reference_tokens[in_result].double()
    error = (tokens[in_reference].double() - expected).norm(dim=-1)
    close = error <= relative_tolerance * expected.norm(dim=-1)
    return Agreement(
        overlap=in_result.double().mean().item(),
        same_indices=torch.equal(indices, reference_indices),
        close_rows=close.double().mean().item() if len(close) else 0.0,
    )
