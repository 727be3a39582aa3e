"""A letterboxed film: identical black rows above and below the picture, in every frame."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import reference
from fastvid_kernels import explain

ROWS, COLUMNS, DIM, BAR = 12, 12, 48, 2


def letterboxed_film(frames: int, bar: Tensor, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, attention, and which tokens of a frame are black (bool `[N]`)."""
    generator = torch.Generator().manual_seed(seed)
    shot = torch.arange(frames) * 3 // frames
    scenes = torch.randn(3, ROWS, COLUMNS, DIM, generator=generator)
    tokens = scenes[shot] + 0.2 * torch.randn(frames, ROWS, COLUMNS, DIM, generator=generator)
    tokens[:, :BAR] = bar
    tokens[:, -BAR:] = bar
    black = torch.zeros(ROWS, COLUMNS, dtype=torch.bool)
    black[:BAR] = black[-BAR:] = True
    attn = torch.rand(frames, ROWS, COLUMNS, generator=generator).masked_fill(black, 0.0)
    return tokens.flatten(1, 2).to(dtype), attn.flatten(1, 2), black.flatten()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bar", ["zero", "an embedding"])
def test_black_tokens_do_not_fill_the_anchors(bar: str, dtype: torch.dtype) -> None:
    embedding = torch.zeros(DIM) if bar == "zero" else torch.linspace(-1.7, 2.3, DIM)
    tokens, attn, black = letterboxed_film(12, embedding, dtype, seed=1)
    explanation = explain(tokens, attn, retention_ratio=0.15)
    n = len(black)
    for frame in explanation.anchor_frames:
        is_black = black[frame.anchors - frame.frame * n]
        assert is_black.sum() == 1, "a third of a frame is black: one black token stands for it"
        assert frame.anchors[is_black].item() == frame.frame * n, "the first of equal tokens leads"
    assert torch.equal(explanation.indices, reference.prune(tokens, attn, retention_ratio=0.15).indices)


@pytest.mark.parametrize("tokens_per_frame", [7, 8, 33, 196])
def test_equal_tokens_are_at_distance_zero_whatever_the_size(tokens_per_frame: int) -> None:
    """A Gram matrix alone does not ensure it: with 7 tokens a CPU sums elements at its edges in another order."""
    embedding = torch.linspace(-1.7, 2.3, 3584)
    tokens = embedding.expand(4, tokens_per_frame, 3584).clone()
    tokens[:, 1] += 1.0
    explanation = explain(tokens, torch.zeros(4, tokens_per_frame), retention_ratio=0.3, dtm_ratio=1.0)
    for frame in explanation.anchor_frames:
        assert (frame.anchors - frame.frame * tokens_per_frame)[:2].tolist() == [0, 1]


def test_a_nearly_equal_token_is_not_taken_for_an_equal_one() -> None:
    """Tokens 2 and 3 equal token 0 but for one channel; they are equal to one another."""
    tokens = torch.linspace(1, 2, 256).repeat(1, 6, 1)
    tokens[0, 2:4, 0] += 0.1
    tokens[0, 5] *= -1
    explanation = explain(tokens, torch.zeros(1, 6), retention_ratio=0.5, dtm_ratio=1.0, num_neighbors=1)
    assert explanation.anchors.tolist() == [0, 2, 5]
