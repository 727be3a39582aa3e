"""Each method against loops written from its equations."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from fastvid_kernels import Pruned, methods
from fastvid_kernels.vision import without_sinks
from tests.methods import loops

# Frames, tokens a frame, channels.
SIZES = ((1, 9, 12), (3, 20, 18), (9, 25, 13), (21, 12, 24))
RATIOS = (0.1, 0.25, 0.34, 0.7, 0.95, 1.0)
LOOPS: dict[str, Any] = {
    name: getattr(loops, name)
    for name in ("uniform", "pool", "attention", "visionzip", "dycoke", "evs", "vidcom2", "vcast", "simple_cluster")
}
SEGMENTATIONS = {"dynamic": "dyseg", "fixed": "fixed", "cluster": "cluster"}
MERGINGS = {"density": "dtm", "uniform": "uniform", "cluster": "cluster"}


def film(frames: int, n: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Shots of a few frames that change little within a shot, so that segments, windows and static places exist."""
    generator = torch.Generator().manual_seed(seed + 1000 * frames + n)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    shots = normal(1 + frames // 4, n, dim)
    speed = 0.1 + torch.rand(1, n, 1, generator=generator, dtype=torch.float64)
    tokens = torch.stack([shots[frame // 4] for frame in range(frames)]) + speed * normal(frames, n, dim)
    attn = torch.rand(frames, n, generator=generator, dtype=torch.float64).float()
    return tokens, attn, normal(frames, 7)


def check(ours: Pruned, expected: tuple[Tensor, Tensor]) -> None:
    assert ours.indices.tolist() == expected[1].tolist()
    torch.testing.assert_close(ours.tokens, expected[0].to(ours.tokens.dtype), rtol=0, atol=1e-9)


def keeps_some(n: int, ratio: float) -> bool:
    return int(n * ratio + 1e-9) > 0


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", LOOPS)
def test_it_computes_its_equations(name: str, size: tuple[int, int, int]) -> None:
    # Fewer cases for simple_cluster, whose loops take longest.
    cases = product((0,), (0.1, 0.34)) if name == "simple_cluster" else product(range(3), RATIOS)
    for seed, ratio in cases:
        if keeps_some(size[1], ratio):
            tokens, attn, features = film(*size, seed=seed)
            for given in (None, features):
                expected = LOOPS[name](tokens, attn, given, None, ratio)
                check(methods.get(name)(tokens, attn, given, retention_ratio=ratio), expected)


@pytest.mark.parametrize("size", [*SIZES, (8, 70, 6)])
def test_prunevid(size: tuple[int, int, int]) -> None:
    """The method's default number of neighbours is that of the published code, 7."""
    for seed in range(3):
        tokens, _, features = film(*size, seed=seed)
        expected = loops.prunevid(tokens, None, None, None, 0.5, num_neighbors=7)
        check(methods.get("prunevid")(tokens, None, features, retention_ratio=0.5), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("segmentation", "merging"), list(product(SEGMENTATIONS, MERGINGS)))
def test_fastvid_with_another_part(segmentation: Any, merging: Any, size: tuple[int, int, int]) -> None:
    method = methods.get("fastvid", segmentation=segmentation, merging=merging)
    own = {"segmentation": SEGMENTATIONS[segmentation], "merging": MERGINGS[merging]}
    changed: Any = ({}, {"min_segments": 3, "anchor_interval": 2, "beta": 0.3})
    tokens, attn, features = film(*size)
    for ratio, hyperparameters, given in product((0.1, 0.34, 0.95), changed, (None, features)):
        if keeps_some(size[1], ratio):
            expected = loops.fastvid(tokens, attn, given, None, ratio, **own, **hyperparameters)
            check(method(tokens, attn, given, retention_ratio=ratio, **hyperparameters), expected)


@pytest.mark.parametrize("size", SIZES)
def test_random_keeps_as_many_of_each_frame_and_the_same_for_a_seed(size: tuple[int, int, int]) -> None:
    tokens, _, _ = film(*size)
    outcomes = [methods.get("random", seed=seed)(tokens, retention_ratio=0.3) for seed in (0, 0, 1)]
    for outcome in outcomes:
        loops.check_random(outcome, tokens, 0.3)
    assert torch.equal(outcomes[0].indices, outcomes[1].indices)
    assert not torch.equal(outcomes[0].indices, outcomes[2].indices)
    assert torch.equal(methods.get("random")(tokens, retention_ratio=0.3).indices, outcomes[0].indices)


@pytest.mark.parametrize("name", [*LOOPS, "prunevid"])
@pytest.mark.parametrize("kind", ["one token everywhere", "static", "two kinds", "zeros"])
def test_ties_go_to_the_lower_index(name: str, kind: str) -> None:
    tokens, attn, _ = film(9, 20, 18)
    if kind == "one token everywhere":
        tokens = tokens[:1, :1].expand_as(tokens)
    elif kind == "static":
        tokens = tokens[:1].expand_as(tokens)
    elif kind == "two kinds":
        tokens = torch.where(attn[..., None] > 0.5, tokens[0, 0], tokens[0, 1])
    else:
        tokens = torch.zeros_like(tokens)
    attn = (attn > 0.7).float()
    own = {"num_neighbors": 7} if name == "prunevid" else {}
    for ratio in (0.1, 0.4, 0.8):
        expected = getattr(loops, name)(tokens, attn, None, None, ratio, **own)
        check(methods.get(name)(tokens, attn, retention_ratio=ratio), expected)


def test_attention_without_sinks() -> None:
    _, attn, _ = film(9, 20, 18)
    attn[:, 3] += 0.5
    torch.testing.assert_close(without_sinks(attn).double(), loops.sink_corrected(attn).double(), rtol=0, atol=1e-7)
    constant = torch.full((4, 6), 0.25)
    assert torch.equal(without_sinks(constant), constant), "nothing stands out"
    attn[2, 5] = torch.nan
    corrected = without_sinks(attn)
    assert corrected.isfinite().sum() == attn.numel() - 1
    assert torch.equal(corrected[:, 5].isnan(), attn[:, 5].isnan())
