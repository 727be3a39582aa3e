"""The results that a benchmark's output is compared with before its time counts."""

import pytest
import torch

from benchmarks.compared import arms
from benchmarks.compared.agreement import agreement
from benchmarks.inputs.cases import Case, inputs_of


def test_agreement_of_two_overlapping_results():
    reference = torch.eye(4), torch.tensor([0, 2, 5, 7])
    result = torch.eye(4) * torch.tensor([[1.0], [1.1], [1.0], [1.0]]), torch.tensor([0, 2, 6, 7])
    found = agreement(result, reference, relative_tolerance=0.05)
    assert found.overlap == 0.75
    assert not found.same_indices
    assert found.close_rows == pytest.approx(2 / 3)


def test_reference_settles_equal_attention_by_index():
    case = Case(12, 36, channels=32, dtype="float32")
    (video,) = inputs_of(case, 1)
    _, indices = arms.reference(case, video._replace(attn=torch.full_like(video.attn, 1 / 36)), torch.device("cpu"))
    # K = 3 tokens a frame; every frame has at least one salient token, which is its first.
    assert torch.isin(torch.arange(12) * 36, indices).all()
