"""Attention from a tower's queries and keys against loops in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastvid_kernels.vision import TowerScore, mean_query, received, rotated, tower_attention
from tests.adapters import qwen_independent
from tests.adapters.tiny_qwen import MERGE


def random(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def received_in_loops(queries: Tensor, keys: Tensor, patches_per_token: int) -> Tensor:
    frames, patches, heads, dim = queries.shape
    got = torch.zeros(frames, patches // patches_per_token, dtype=torch.float64)
    for frame in range(frames):
        for head in range(heads):
            for query in queries[frame, :, head].double():
                weights = ((keys[frame, :, head].double() @ query) / dim**0.5).softmax(0)
                for place, weight in enumerate(weights):
                    got[frame, place // patches_per_token] += weight / (heads * patches * patches_per_token)
    return got


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mean_query(dtype: torch.dtype) -> None:
    rows, columns = 6, 10
    queries, keys = (3 * random(seed, 2, rows * columns, 3, 8, dtype=dtype) for seed in (1, 2))
    expected = qwen_independent.mean_query(queries, keys, (2, rows, columns), None)
    ours = mean_query(queries, keys, MERGE**2)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("score", [mean_query, received])
def test_autocast_does_not_matter(score: TowerScore) -> None:
    queries, keys = (3 * random(seed, 2, 24, 3, 8) for seed in (3, 4))
    expected = score(queries, keys, MERGE**2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(score(queries, keys, MERGE**2), expected)


@pytest.mark.parametrize("at_once", [1, 7, 256])
def test_received(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """For any number of queries at a time."""
    monkeypatch.setattr(tower_attention, "_QUERIES_AT_ONCE", at_once)
    queries, keys = (3 * random(seed, 2, 24, 3, 8) for seed in (3, 4))
    expected = received_in_loops(queries, keys, MERGE**2)
    torch.testing.assert_close(received(queries, keys, MERGE**2).double(), expected, rtol=0, atol=1e-6)


def test_received_never_holds_the_whole_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    softmax = Tensor.softmax

    def watched(self: Tensor, dim: int) -> Tensor:
        nonlocal largest
        largest = max(largest, self.numel())
        return softmax(self, dim=dim)

    monkeypatch.setattr(Tensor, "softmax", watched)
    queries, keys = (random(seed, 3, 1024, 2, 8) for seed in (3, 4))
    received(queries, keys, 4)
    assert largest == 2 * 256 * 1024


def test_rotated_turns_each_channel_of_the_first_half_with_its_like_in_the_second() -> None:
    x, angles = random(5, 1, 3, 2, 6), random(6, 1, 3, 3)
    cos, sin = (function(torch.cat([angles, angles], dim=-1)) for function in (torch.cos, torch.sin))
    turned = rotated(x, cos, sin)
    complex_x = torch.complex(x[..., :3], x[..., 3:]) * torch.exp(1j * angles)[:, :, None]
    torch.testing.assert_close(turned, torch.cat([complex_x.real, complex_x.imag], dim=-1))
