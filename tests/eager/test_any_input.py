"""Whatever the bits: F * K distinct, ascending, in-range indices, and non-finite values only where one went in."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from torch import Tensor

import reference
from fastvid_kernels import Explanation, explain
from tests.stages import assert_same_bits

_BITS = {torch.float64: np.uint64, torch.float32: np.uint32, torch.bfloat16: np.uint16, torch.float16: np.uint16}
_SIGNED = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}


def bit_patterns(dtype: torch.dtype) -> st.SearchStrategy[int]:
    """Any bits, with zeros, denormals, the largest values, infinities and NaNs made frequent."""
    info = torch.finfo(dtype)
    special = [0.0, -0.0, 1.0, info.tiny, -info.smallest_normal / 4, info.max, -info.max, np.inf, -np.inf, np.nan]
    mask = 2**info.bits - 1
    integers = [torch.tensor(value, dtype=dtype).view(_SIGNED[dtype]).item() & mask for value in special]
    return st.sampled_from(integers) | st.integers(0, mask)


def raw_tensor(dtype: torch.dtype, shape: tuple[int, ...]) -> st.SearchStrategy[Tensor]:
    bits = arrays(_BITS[dtype], shape, elements=bit_patterns(dtype))
    return bits.map(lambda array: torch.from_numpy(array.view(f"i{array.itemsize}").copy()).view(dtype))


@st.composite
def any_call(draw: st.DrawFn, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None, dict[str, Any]]:
    frames, n, dim = draw(st.integers(1, 6)), draw(st.integers(1, 9)), draw(st.integers(1, 5))
    kept = draw(st.integers(1, n))
    hyperparameters = {
        "retention_ratio": min(1.0, (kept + 0.5) / n),
        "min_segments": draw(st.integers(1, 8)),
        "tau": draw(st.floats(-2, 2)),
        "dtm_ratio": draw(st.floats(0, 1)),
        "anchor_interval": draw(st.integers(1, 5)),
        "beta": draw(st.floats(0, 1)),
        "num_neighbors": draw(st.integers(1, 12)),
    }
    features = raw_tensor(torch.float32, (frames, draw(st.integers(1, 4))))
    return (
        draw(raw_tensor(dtype, (frames, n, dim))),
        draw(raw_tensor(draw(st.sampled_from(list(_BITS))), (frames, n))),
        draw(st.none() | features),
        hyperparameters,
    )


def check_any_input(tokens: Tensor, explanation: Explanation, kept_per_frame: int) -> None:
    frames, n, dim = tokens.shape
    indices = explanation.indices
    assert indices.shape == (frames * kept_per_frame,)
    assert explanation.tokens.shape == (frames * kept_per_frame, dim)
    assert indices[0] >= 0
    assert indices[-1] < frames * n
    assert (indices.diff() > 0).all()

    flat = tokens.flatten(0, 1)
    finite = flat.isfinite().all(1)
    tainted = {index for index in indices.tolist() if not finite[index]}
    for record in explanation.anchor_frames:
        tainted.update(record.joined_anchor[~finite[record.joined]].tolist())
    for row, index in enumerate(indices.tolist()):
        assert index in tainted or explanation.tokens[row].isfinite().all()

    salient = torch.isin(indices, explanation.salient)
    assert_same_bits(explanation.tokens[salient], flat[indices[salient]])


@pytest.mark.parametrize("dtype", _BITS, ids=str)
def test_raw_bit_patterns(dtype: torch.dtype) -> None:
    @settings(max_examples=150, deadline=None, database=None, derandomize=True)
    @given(any_call(dtype))
    def check(call: tuple[Tensor, Tensor, Tensor | None, dict[str, Any]]) -> None:
        tokens, attn, features, hyperparameters = call
        explanation = explain(tokens, attn, features, **hyperparameters)
        kept = reference.tokens_per_frame(tokens.shape[1], hyperparameters["retention_ratio"])
        check_any_input(tokens, explanation, kept)
        oracle = reference.prune(tokens, attn, features, **hyperparameters)
        assert [tuple(segment) for segment in explanation.segments.tolist()] == oracle.segments
        assert torch.equal(explanation.salient, oracle.salient)

    check()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", _BITS, ids=str)
def test_many_raw_bit_patterns(dtype: torch.dtype) -> None:
    @settings(max_examples=3000, deadline=None, database=None, derandomize=True)
    @given(any_call(dtype))
    def check(call: tuple[Tensor, Tensor, Tensor | None, dict[str, Any]]) -> None:
        tokens, attn, features, hyperparameters = call
        explanation = explain(tokens, attn, features, **hyperparameters)
        check_any_input(
            tokens, explanation, reference.tokens_per_frame(tokens.shape[1], hyperparameters["retention_ratio"])
        )

    check()


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), float("-inf"), 3e38, 1e-45])
def test_constant_videos(value: float) -> None:
    tokens = torch.full((9, 12, 7), value)
    check_any_input(tokens, explain(tokens, torch.full((9, 12), value), retention_ratio=0.5), 6)


@pytest.mark.parametrize("dtype", _BITS, ids=str)
def test_finite_tokens_have_a_finite_mean_even_at_the_largest_number(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    tokens = torch.full((6, 10, 4), largest, dtype=dtype)
    tokens[:, 1::2] = -largest
    explanation = explain(tokens, torch.zeros(6, 10), retention_ratio=0.2, dtm_ratio=1.0, beta=0.0, min_segments=1)
    assert explanation.tokens.isfinite().all()


def test_a_nan_spoils_one_row_in_each_anchor_frame() -> None:
    generator = torch.Generator().manual_seed(3)
    tokens, attn = torch.randn(8, 20, 6, generator=generator), torch.rand(8, 20, generator=generator)
    tokens[5, 7, 2] = float("nan")
    attn[5, 7] = 0.0
    explanation = explain(tokens, attn, torch.ones(8, 3), retention_ratio=0.3, min_segments=1)
    spoilt = [record.joined_anchor[record.joined == 107].item() for record in explanation.anchor_frames]
    assert [record.frame for record in explanation.anchor_frames] == [3, 7]
    assert explanation.indices[explanation.tokens.isnan().any(1)].tolist() == spoilt


def test_not_even_nan_reaches_an_anchor_when_beta_is_one() -> None:
    tokens = torch.randn(6, 12, 4, generator=torch.Generator().manual_seed(4))
    tokens[:, 5] = float("nan")
    explanation = explain(tokens, torch.zeros(6, 12), retention_ratio=0.25, dtm_ratio=1.0, beta=1.0)
    assert_same_bits(explanation.tokens, tokens.flatten(0, 1)[explanation.indices])
