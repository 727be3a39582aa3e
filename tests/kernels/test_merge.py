"""The integer arithmetic by which `emit` finds tokens and makes its one-hot matrix: exact for every size there is."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from benchmarks.gpu.tiles import VARIANTS
from fastvid_kernels.kernels.groups import BLOCK_SLOTS, PAIR
from fastvid_kernels.kernels.limits import MAX_TOKENS_PER_FRAME
from fastvid_kernels.kernels.merge import _frames_on, _twice_one_hot

pytestmark = pytest.mark.runs_kernels

_TILE = 128
"""The largest tile of tokens, shipped or swept."""


@triton.jit
def _frames_on_kernel(wrong_ptr, BEYOND: tl.constexpr, BLOCK: tl.constexpr):
    N = tl.program_id(0) + 1
    wrong = tl.zeros([BLOCK], tl.int32)
    for first in range(0, N + BEYOND, BLOCK):
        i = first + tl.arange(0, BLOCK)
        wrong += ((i < N + BEYOND) & (_frames_on(i, N) != i // N)).to(tl.int32)
    tl.atomic_add(wrong_ptr + tl.arange(0, BLOCK), wrong)


@pytest.mark.parametrize(("beyond", "is_exact"), [(_TILE, True), (4 * MAX_TOKENS_PER_FRAME, False)])
def test_frames_are_counted_without_a_division(beyond: int, is_exact: bool) -> None:
    """For frames of every size, and positions up to a tile of the largest size beyond them; not for any position."""
    swept = [dict(one.constants) for one in VARIANTS if one.stage == "emit"]
    assert max(constants.get(name, 0) for constants in swept for name in ("BLOCK_TOKENS", "GROUP_TOKENS")) == _TILE
    wrong = torch.zeros(1024, dtype=torch.int32)
    _frames_on_kernel[(MAX_TOKENS_PER_FRAME,)](wrong_ptr=wrong, BEYOND=beyond, BLOCK=1024, enable_fp_fusion=False)
    assert bool(wrong.any()) != is_exact


@triton.jit
def _one_hot_kernel(pairs_ptr, one_hot_ptr, PAIRS: tl.constexpr, FRAMES: tl.constexpr, SLOTS: tl.constexpr):
    pair = tl.arange(0, FRAMES)[:, None] * PAIRS + tl.arange(0, PAIRS)[None, :]
    slot = tl.program_id(0) * SLOTS + tl.arange(0, SLOTS)
    one_hot = _twice_one_hot(tl.load(pairs_ptr + pair), slot, one_hot_ptr.dtype.element_ty)
    row = tl.program_id(0) * FRAMES * SLOTS + tl.arange(0, FRAMES * SLOTS)
    tl.store(one_hot_ptr + row[:, None] * (2 * PAIRS) + tl.arange(0, 2 * PAIRS)[None, :], one_hot)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_one_hot_rows_of_every_slot(dtype: torch.dtype) -> None:
    """Slots that share bits with a token's, and -1, which is no slot, included."""
    bits = [1 << power for power in range(10)]
    others = [-1, 0, 1023, 3, 31, 33, 85, 170, 341, 682, 513, 992]
    nearest = torch.tensor([*others, *bits, *(1023 - bit for bit in bits)], dtype=torch.int16)
    nearest = torch.stack([nearest, nearest.flip(0)])
    blocks = MAX_TOKENS_PER_FRAME // BLOCK_SLOTS
    frames, tokens = nearest.shape
    one_hot = torch.full((blocks, frames, BLOCK_SLOTS, tokens), -1.0, dtype=dtype)
    pairs = nearest.view(torch.int32)
    _one_hot_kernel[(blocks,)](
        pairs_ptr=pairs, one_hot_ptr=one_hot, PAIRS=tokens // 2, FRAMES=PAIR.value, SLOTS=BLOCK_SLOTS,
        enable_fp_fusion=False,
    )  # fmt: skip
    slots = torch.arange(MAX_TOKENS_PER_FRAME).reshape(blocks, 1, BLOCK_SLOTS, 1)
    assert torch.equal(one_hot, 2 * (nearest[None, :, None, :] == slots).to(dtype))
