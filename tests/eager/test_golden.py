"""The eager backend against the published code's outputs."""

from __future__ import annotations

import pytest
import torch

from fastvid_kernels import explain, prune
from tests.golden import QWEN_CASES, case_names, load_case, load_qwen_case


@pytest.mark.parametrize("name", case_names())
def test_eager_reproduces_the_published_code(name: str) -> None:
    case = load_case(name)
    pruned = prune(case.tokens, case.attn, case.frame_features, backend="eager", **case.hyperparameters)
    assert torch.equal(pruned.indices, case.expected_indices)
    torch.testing.assert_close(pruned.tokens, case.expected_tokens, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", case_names())
def test_explain_finds_the_published_segments(name: str) -> None:
    case = load_case(name)
    explanation = explain(case.tokens, case.attn, case.frame_features, **case.hyperparameters)
    lengths = explanation.segments[:, 1] - explanation.segments[:, 0]
    assert lengths.tolist() == case.segment_lengths


@pytest.mark.parametrize("name", QWEN_CASES)
def test_eager_reproduces_the_published_block_for_qwen(name: str) -> None:
    case = load_qwen_case(name)
    pruned = prune(case.tokens, case.attn, backend="eager", **case.hyperparameters)
    assert torch.equal(pruned.indices, case.expected_indices)
    torch.testing.assert_close(pruned.tokens, case.expected_tokens, rtol=0, atol=1e-5)
