"""The whole oracle: one video by hand, batches of videos, any bits, and rounding."""

import math
from typing import Any

import numpy as np
import pytest
import torch

import reference

NAN = math.nan
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def random_video(frames: int, num_tokens: int = 30, dim: int = 20, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(frames, num_tokens, dim, generator=generator)
    return tokens, torch.rand(frames, num_tokens, generator=generator)


def bits(values: torch.Tensor) -> torch.Tensor:
    return values.contiguous().view(torch.uint8)


def test_two_frames_by_hand() -> None:
    tokens = torch.tensor(
        [
            [[4.0, 0.0], [0.0, 4.0], [2.0, 0.0], [9.0, 9.0]],
            [[7.0, 7.0], [1.0, 0.0], [3.0, 0.0], [0.0, 5.0]],
        ]
    )
    attn = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]])
    # K = 2; one segment of L = 2 with one anchor frame, the last: C = min(floor(4 * 0.5), 1 * 2) = 2, S = 2.
    pruned = reference.prune(
        tokens,
        attn,
        retention_ratio=0.5,
        min_segments=1,
        tau=-1.0,
        dtm_ratio=0.5,
        anchor_interval=2,
        beta=0.5,
        num_neighbors=2,
    )
    assert pruned.segments == [(0, 2)]
    assert pruned.salient.tolist() == [3, 4]
    (record,) = pruned.anchor_frames
    assert (record.frame, record.segment) == (1, 0)
    # Candidates (1,0), (3,0), (0,5); with k = 2, D = 2: s = 4/4, 4/4, 26/4.
    assert record.candidates.tolist() == [1, 2, 3]
    assert record.squared_distances.tolist() == [[0, 4, 26], [4, 0, 34], [26, 34, 0]]
    assert record.s.tolist() == [1.0, 1.0, 6.5]
    assert record.squared_delta.tolist() == [34, 4, 26]
    assert record.scores.tolist() == pytest.approx([math.log(17) / 2 - 1, math.log(2) / 2 - 1, math.log(13) / 2 - 6.5])
    assert record.anchors.tolist() == [1, 2]
    # Both anchors point along the first axis: every token ties and joins the first of them.
    assert record.pool.tolist() == [0, 1, 2, 7]
    assert record.similarities.tolist() == [[4, 4], [0, 0], [2, 2], [0, 0]]
    assert record.assignment.tolist() == [0, 0, 0, 0]
    # n = 4: w = max(0.5, 1/5); 0.5*(1, 0) + 0.5*(6/4, 9/4). No token joined the second.
    assert record.weights.tolist() == [0.5, 1.0]
    assert record.merged.tolist() == [[1.25, 1.125], [3.0, 0.0]]
    assert pruned.indices.tolist() == [3, 4, 5, 6]
    assert pruned.rounded().tolist() == [[9, 9], [7, 7], [1.25, 1.125], [3, 0]]


def test_anchors_of_other_anchor_frames_are_in_the_pool() -> None:
    tokens, attn = random_video(9)
    pruned = reference.prune(tokens, attn, retention_ratio=0.3, min_segments=1, tau=-1.0, anchor_interval=3)
    assert [record.frame for record in pruned.anchor_frames] == [2, 5, 8]
    flat_anchors = [set((30 * record.frame + record.anchors).tolist()) for record in pruned.anchor_frames]
    salient = set(pruned.salient.tolist())
    for record, own in zip(pruned.anchor_frames, flat_anchors, strict=True):
        assert set(record.pool.tolist()) == set(range(9 * 30)) - salient - own
        assert set().union(*flat_anchors) - own <= set(record.pool.tolist())


@pytest.mark.parametrize("dtype", DTYPES)
def test_keeping_everything_returns_the_input_bit_for_bit(dtype: torch.dtype) -> None:
    tokens, attn = random_video(6)
    tokens = tokens.to(dtype)
    tokens[0, 0, 0], tokens[1, 2, 3], tokens[4, 5, 6] = NAN, -0.0, math.inf
    pruned = reference.prune(tokens, attn, retention_ratio=1.0)
    assert pruned.indices.tolist() == list(range(180))
    assert torch.equal(bits(pruned.rounded()), bits(tokens.reshape(180, 20)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_row_but_a_mixture_is_a_copy(dtype: torch.dtype) -> None:
    tokens, attn = random_video(12)
    tokens = tokens.to(dtype)
    pruned = reference.prune(tokens, attn, retention_ratio=0.3)
    rounded = pruned.rounded()
    assert rounded.dtype == dtype
    mixtures = {
        30 * record.frame + anchor
        for record in pruned.anchor_frames
        for anchor, weight in zip(record.anchors.tolist(), record.weights.tolist(), strict=True)
        if weight < 1
    }
    assert 0 < len(mixtures) < len(pruned.indices)
    for index, row in zip(pruned.indices.tolist(), rounded, strict=True):
        if index not in mixtures:
            assert torch.equal(bits(row), bits(tokens.reshape(-1, 20)[index]))


def test_videos_of_a_batch_do_not_see_each_other() -> None:
    lengths = [5, 0, 1, 9]
    videos = [random_video(length, seed=seed) for seed, length in enumerate(lengths)]
    settings: dict[str, Any] = {"retention_ratio": 0.3, "min_segments": 3, "tau": -1.0}
    batch = reference.prune(
        torch.cat([tokens for tokens, _ in videos]),
        torch.cat([attn for _, attn in videos]),
        cu_frames=torch.tensor([0, 5, 5, 6, 15], dtype=torch.int32),
        **settings,
    )
    row = first_frame = 0
    segments = []
    for tokens, attn in videos:
        alone = reference.prune(tokens, attn, **settings)
        rows = slice(row, row + len(alone.indices))
        assert torch.equal(batch.indices[rows], alone.indices + first_frame * 30)
        assert torch.equal(batch.tokens[rows], alone.tokens)
        segments += [(first_frame + start, first_frame + end) for start, end in alone.segments]
        row, first_frame = row + len(alone.indices), first_frame + len(tokens)
    assert row == len(batch.indices) == 15 * 9
    assert batch.segments == segments


@pytest.mark.parametrize("cu_frames", [[0, 3], [1, 6], [0, 4, 2, 6], []])
def test_cu_frames_must_tile_the_frames(cu_frames: list[int]) -> None:
    tokens, attn = random_video(6)
    with pytest.raises(ValueError, match="cu_frames"):
        reference.prune(tokens, attn, cu_frames=cu_frames)


def test_non_finite_values_reach_only_their_own_row_and_the_rows_they_were_merged_into() -> None:
    tokens, attn = random_video(12)
    frame_features, _ = random_video(12, num_tokens=8, seed=1)
    bad = {31, 140, 299}
    for index, value in zip(sorted(bad), [NAN, math.inf, -math.inf], strict=True):
        tokens.view(-1, 20)[index, 7] = value
    pruned = reference.prune(tokens, attn, frame_features[:, 0], retention_ratio=0.3, min_segments=3, tau=-1.0)
    may_be_bad = set(bad)
    for record in pruned.anchor_frames:
        for index, anchor in zip(record.pool.tolist(), record.assignment.tolist(), strict=True):
            if index in bad:
                may_be_bad.add(30 * record.frame + int(record.anchors[anchor]))
    found_bad = {
        index for index, row in zip(pruned.indices.tolist(), pruned.rounded(), strict=True) if not row.isfinite().all()
    }
    assert found_bad
    assert found_bad <= may_be_bad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("seed", range(10))
def test_any_bits_give_distinct_ascending_indices(dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    frames, num_tokens = 7, 12
    words = torch.randint(-(2**15), 2**15, (frames, num_tokens, 5), dtype=torch.int16, generator=generator)
    scores = torch.randint(-(2**15), 2**15, (frames, num_tokens), dtype=torch.int16, generator=generator)
    pruned = reference.prune(words.view(dtype), scores.view(dtype), retention_ratio=0.5, min_segments=3, tau=0.0)
    assert pruned.rounded().shape == (frames * 6, 5)
    assert (pruned.indices.diff() > 0).all()
    assert 0 <= pruned.indices[0] <= pruned.indices[-1] < frames * num_tokens


@pytest.mark.parametrize("dtm_ratio", [0.0, 1.0])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_only_one_of_the_two_ways(dtm_ratio: float, frames: int) -> None:
    tokens, attn = random_video(frames)
    pruned = reference.prune(tokens, attn, retention_ratio=0.2, dtm_ratio=dtm_ratio)
    assert len(pruned.indices) == frames * 6
    assert len(pruned.salient) == (frames * 6 if dtm_ratio == 0 else 0)
    assert bool(pruned.anchor_frames) == (dtm_ratio == 1)


def test_keeping_nothing_is_an_error() -> None:
    tokens, attn = random_video(2)
    with pytest.raises(ValueError, match="keeps none"):
        reference.prune(tokens, attn, retention_ratio=0.01)


def test_rounding_happens_once() -> None:
    # Just above halfway between 1 and its successor; float32 drops the 2**-40, and the tie would go to 1.
    bfloat = torch.tensor([1 + 2**-8 + 2**-40, -1 - 2**-8 - 2**-40], dtype=torch.float64)
    assert reference.round_once(bfloat, torch.bfloat16).tolist() == [1 + 2**-7, -1 - 2**-7]
    half = torch.tensor([1 + 2**-11 + 2**-40, 1 + 2**-11], dtype=torch.float64)
    assert reference.round_once(half, torch.float16).tolist() == [1 + 2**-10, 1.0]


def test_rounding_to_float16_agrees_with_numpy() -> None:
    """NumPy converts float64 to float16 directly. Values lie near the halfway points, subnormals included."""
    generator = torch.Generator().manual_seed(0)
    halves = torch.arange(0, 0x7C00, dtype=torch.int16).view(torch.float16).double()
    halfway = (halves[:-1] + halves[1:]) / 2
    noise = 2.0 ** -torch.randint(20, 60, halfway.shape, generator=generator).double()
    for values in (halfway, halfway * (1 + noise), halfway * (1 - noise), -halfway * (1 + noise)):
        expected = torch.from_numpy(values.numpy().astype(np.float16))
        assert torch.equal(bits(reference.round_once(values, torch.float16)), bits(expected))


def test_rounding_keeps_special_values() -> None:
    values = torch.tensor([math.inf, -math.inf, 0.0, -0.0, NAN], dtype=torch.float64)
    for dtype in DTYPES:
        assert torch.equal(bits(reference.round_once(values, dtype)[:4]), bits(values.to(dtype)[:4]))
        assert reference.round_once(values, dtype)[4].isnan()
