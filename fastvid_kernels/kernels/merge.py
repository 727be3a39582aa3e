"""Tokens merged into the anchors that they joined (Eq. 5; SPEC section 5), for launch 8.

The sum of an anchor's tokens is a row of a matrix product: a one-hot matrix, which says who joined whom, times the
tokens. The one-hot matrix is made in registers, where the product takes it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastvid_kernels.kernels.bundles import anchor_frame, anchors_of, cell_of, rows_of
from fastvid_kernels.kernels.floats import is_finite
from fastvid_kernels.kernels.gram import product
from fastvid_kernels.kernels.groups import PAIR
from fastvid_kernels.kernels.launch import ROW_VECTOR
from fastvid_kernels.kernels.plan import segment_budget

# With this scale, the sum of as many tokens as a segment can hold, 2**30, does not overflow.
HEADROOM = tl.constexpr(2.0**-31)


@triton.jit
def _frames_on(i, N):
    """`i // N` in 64 bits for positions `i` up to a tile beyond a frame of N tokens.

    Divisions would take as long as the product. This is exact while `i * N < 2**21`.
    """
    return i.to(tl.int64) * ((1 << 21) // N + 1) >> 21


@triton.jit
def _token_pairs(joined, segment, ordinal, frames, first, tokens, BLOCK_TOKENS: tl.constexpr):
    """The slots that the tokens of a tile joined in PAIR anchor frames, two tokens in an integer.

    Shape `[PAIR, BLOCK_TOKENS // 2]`; -1 beyond the segment and beyond the `frames` anchor frames that there are.
    A fragment of a matrix product of 16-bit numbers holds, in a thread, every fourth pair of tokens. So these pairs are
    taken in such an order that a thread finds its own side by side in memory; `_order` is the same order of tokens.
    """
    ACROSS: tl.constexpr = 4
    ALONG: tl.constexpr = BLOCK_TOKENS // 2 // ACROSS
    PER_VECTOR: tl.constexpr = ROW_VECTOR // 2
    frame = tl.arange(0, PAIR)
    pair = tl.arange(0, ACROSS)[:, None] * ALONG + tl.arange(0, ALONG)[None, :]
    vectors_left = tl.cdiv(tokens - first, ROW_VECTOR)
    exists = (frame < frames)[:, None, None] & (pair // PER_VECTOR < vectors_left)[None, :, :]
    cell = cell_of(joined, segment.start, segment.end, ordinal) + first
    first_pair = (joined.nearest_ptr + cell).to(tl.pointer_type(tl.int32))
    frame_pairs = (segment.end - segment.start).to(tl.int64) * joined.row_vectors * PER_VECTOR
    offset = (frame * frame_pairs)[:, None, None] + pair.to(tl.int64)[None, :, :]
    pairs = tl.load(first_pair + offset, mask=exists, other=-1)
    return tl.reshape(tl.permute(pairs, [0, 2, 1]), [PAIR, BLOCK_TOKENS // 2])


@triton.jit
def _order(BLOCK_TOKENS: tl.constexpr):
    """The tokens of a tile, in the order of `_token_pairs`."""
    position = tl.arange(0, BLOCK_TOKENS)
    return position // 2 % 4 * (BLOCK_TOKENS // 4) + position // 8 * 2 + position % 2


@triton.jit
def _twice_one_hot(pairs, slot, dtype: tl.constexpr):
    """2 where a token joined a slot, 0 elsewhere, `[PAIR * BLOCK_SLOTS, BLOCK_TOKENS]`, from `_token_pairs`.

    Two tokens take three operations. A half whose 14 bits are the slot's becomes zero; adding 0x3FFF to any other value
    carries into bit 14. That bit alone is the number 2 in float16, bfloat16 and, 16 bits higher, float32.
    """
    differs = (pairs[:, None, :] ^ (slot * 0x10001)[None, :, None]) & 0x3FFF3FFF
    twice = ~(differs + 0x3FFF3FFF) & 0x40004000
    if dtype == tl.float32:
        low = (twice << 16).to(tl.float32, bitcast=True)
        high = (twice & 0x40000000).to(tl.float32, bitcast=True)
    else:
        low = twice.to(tl.int16).to(dtype, bitcast=True)
        high = (twice >> 16).to(tl.int16).to(dtype, bitcast=True)
    return tl.reshape(tl.join(low, high), [pairs.shape[0] * slot.shape[0], 2 * pairs.shape[1]])


@triton.jit
def twice_sums(
    x,
    segment,
    joined,
    ordinal,
    frames,
    first_slot,
    channel,
    PAIRS_OF_FRAMES: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    FRAMES_FOLLOW: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Twice the sum of the tokens that joined each of BLOCK_SLOTS anchors of two anchor frames, from `ordinal` on.

    Shape `[PAIR * BLOCK_SLOTS, channels]`; the second half is zero if `frames` is 1. With two PAIRS_OF_FRAMES, the next
    two anchor frames share each tile of tokens, and their sums are returned as well (zeros otherwise). Tokens are
    summed in the order of the segment, BLOCK_TOKENS at a time. A token that is not finite spoils the sums of all
    anchors, and does so even if it joined none: all tokens of the segment are read, so that tiles need no list.
    """
    tokens = (segment.end - segment.start) * x.N
    inside = channel < x.D
    offset = channel.to(tl.int64) * x.stride_d
    slot = first_slot + tl.arange(0, BLOCK_SLOTS)
    token = _order(BLOCK_TOKENS)
    from_first = token.to(tl.int64) * x.stride_n
    next_frame = x.stride_t - x.N.to(tl.int64) * x.stride_n
    total = tl.zeros([PAIR * BLOCK_SLOTS, channel.shape[0]], tl.float32)
    further = total
    # Where the tile begins; a tile can reach into further frames.
    frame, i = tl.full([], 0, tl.int64), tl.full([], 0, tl.int64)
    pairs = _token_pairs(joined, segment, ordinal, frames, 0, tokens, BLOCK_TOKENS)
    if PAIRS_OF_FRAMES == 2:
        further_pairs = _token_pairs(joined, segment, ordinal + PAIR, frames, 0, tokens, BLOCK_TOKENS)
    for first in range(0, tokens, BLOCK_TOKENS):
        if FRAMES_FOLLOW:
            rows = x.ptr + (segment.start.to(tl.int64) * x.N + first) * x.stride_n + from_first
        else:
            rows = rows_of(x, segment.start + frame, i) + from_first
            rows += _frames_on(i + token, x.N) * next_frame
            i += BLOCK_TOKENS
            frames_on = _frames_on(i, x.N)
            frame, i = frame + frames_on, i - frames_on * x.N
        exists = token < tokens - first
        tile = tl.load(rows[:, None] + offset[None, :], mask=exists[:, None] & inside[None, :], other=0.0)
        # Loaded a tile ahead.
        next_pairs = _token_pairs(joined, segment, ordinal, frames, first + BLOCK_TOKENS, tokens, BLOCK_TOKENS)
        total = product(_twice_one_hot(pairs, slot, tile.dtype), tile, total, PRECISION, UPCAST)
        pairs = next_pairs
        if PAIRS_OF_FRAMES == 2:
            next_pairs = _token_pairs(
                joined, segment, ordinal + PAIR, frames, first + BLOCK_TOKENS, tokens, BLOCK_TOKENS
            )
            further = product(_twice_one_hot(further_pairs, slot, tile.dtype), tile, further, PRECISION, UPCAST)
            further_pairs = next_pairs
    return total, further


@triton.jit
def _rows_of_anchors(x, slots, merging, frame, slot, exists, rows_before):
    """How many tokens joined each anchor (0 where none `exists`), and pointers to its token and its output row."""
    # This fits 32 bits: 2**20 frames of at most 1,024 slots.
    cell = frame * slots.per_frame + slot
    count = tl.load(slots.count_ptr + cell, mask=exists, other=0)
    own_rows = rows_of(x, frame, tl.load(slots.anchor_ptr + cell, mask=exists, other=0))
    output_row = rows_before + tl.load(merging.anchor_row_ptr + cell, mask=exists, other=0)
    return count, own_rows, merging.output_ptr + output_row * x.D


@triton.jit
def _rows_before(frame, segment, N, merging):
    """Rows of the output before those of a frame."""
    _, _, _, rows_before = segment_budget(
        frame, segment.start, segment.end, N, merging.K, merging.context_millionths, segment.interval
    )
    return rows_before


@triton.jit
def _weights(count, beta):
    """The weight of an anchor, and of each of the tokens that joined it."""
    weight = tl.maximum(beta, 1.0 / (count + 1).to(tl.float32))
    return weight, (1.0 - weight) / tl.maximum(count, 1).to(tl.float32)


@triton.jit
def _merge_one_by_one(
    x,
    segment,
    slots,
    joined,
    merging,
    ordinal,
    first_slot,
    channel,
    BLOCK_SLOTS: tl.constexpr,
):
    """Replace what is not finite in BLOCK_SLOTS merged rows of one anchor frame, by sums that are taken token by token.

    This is slow, and done for one anchor frame after the other, so that the other way has all registers. But whatever
    the tokens are, a token reaches only its own anchor. Where a sum overflows, that of tokens scaled down does not;
    elsewhere it is not used, since scaled tokens may be subnormal. What was finite stays as it is: which anchors share
    a block depends on the chunks of anchor frames, and bits must not.
    """
    inside = channel < x.D
    offset = channel.to(tl.int64) * x.stride_d
    slot = first_slot + tl.arange(0, BLOCK_SLOTS)
    cell = cell_of(joined, segment.start, segment.end, ordinal)
    total = tl.zeros([BLOCK_SLOTS, channel.shape[0]], tl.float32)
    scaled_total = total
    for frame in range(0, segment.end - segment.start):
        for i in range(0, x.N):
            nearest = tl.load(joined.nearest_ptr + cell + (frame * x.N + i)).to(tl.int32)
            token_ptr = rows_of(x, segment.start + frame, tl.full([], i, tl.int32))
            token = tl.load(token_ptr + offset, mask=inside, other=0.0).to(tl.float32)
            # A selection, not a product: 0 * NaN would make every anchor NaN.
            joins = (slot == nearest)[:, None]
            total = tl.where(joins, total + token[None, :], total)
            scaled_total = tl.where(joins, scaled_total + token[None, :] * HEADROOM, scaled_total)
    frame = anchor_frame(segment, ordinal)
    exists = slot < anchors_of(segment, ordinal)
    before = _rows_before(frame, segment, x.N, merging)
    count, own_rows, output_rows = _rows_of_anchors(x, slots, merging, frame, slot, exists, before)
    weight, share = _weights(count, merging.beta)
    mask = (count > 0)[:, None] & inside[None, :]
    own = tl.load(own_rows[:, None] + offset[None, :], mask=mask, other=0.0).to(tl.float32)
    merged = weight[:, None] * own + share[:, None] * total
    scaled = weight[:, None] * (own * HEADROOM) + share[:, None] * scaled_total
    # Rounding may raise a mean of the largest finite numbers beyond them.
    limit = merging.largest * HEADROOM
    bounded = tl.where(scaled > limit, limit, tl.where(scaled < -limit, -limit, scaled))
    scaled = tl.where(is_finite(own) & is_finite(scaled_total), bounded, scaled) * (1.0 / HEADROOM)
    merged = tl.where(tl.abs(merged) <= merging.largest, merged, scaled)
    cells = output_rows[:, None] + channel[None, :]
    is_spoilt = mask & ~is_finite(tl.load(cells, mask=mask, other=0.0).to(tl.float32))
    tl.store(cells, merged.to(merging.output_ptr.dtype.element_ty), mask=is_spoilt)


@triton.jit
def store_merged(
    twice_sum,
    x,
    segment,
    slots,
    joined,
    merging,
    ordinal,
    frames,
    first_slot,
    channel,
    BLOCK_SLOTS: tl.constexpr,
):
    """Store the anchors of `twice_sum`, each merged with the tokens that joined it; not those that none joined."""
    inside = channel < x.D
    offset = channel.to(tl.int64) * x.stride_d
    row = tl.arange(0, PAIR * BLOCK_SLOTS)
    slot = first_slot + row % BLOCK_SLOTS
    row_ordinal = ordinal + row // BLOCK_SLOTS
    exists = (row // BLOCK_SLOTS < frames) & (slot < anchors_of(segment, row_ordinal))
    frame = anchor_frame(segment, ordinal)
    before = _rows_before(frame, segment, x.N, merging)
    before_next = _rows_before(frame - segment.interval, segment, x.N, merging)
    count, own_rows, output_rows = _rows_of_anchors(
        x, slots, merging, anchor_frame(segment, row_ordinal), slot, exists,
        tl.where(row < BLOCK_SLOTS, before, before_next),
    )  # fmt: skip
    weight, share = _weights(count, merging.beta)
    mask = (count > 0)[:, None] & inside[None, :]
    own = tl.load(own_rows[:, None] + offset[None, :], mask=mask, other=0.0).to(tl.float32)
    merged = weight[:, None] * own + (0.5 * share)[:, None] * twice_sum
    tl.store(output_rows[:, None] + channel[None, :], merged.to(merging.output_ptr.dtype.element_ty), mask=mask)
    # False for NaN.
    if tl.min((tl.abs(merged) <= merging.largest).to(tl.int32)) == 0:
        # Some token is not finite, a sum overflowed, or rounding raised a mean beyond the largest number.
        # Other threads read again what was stored.
        tl.debug_barrier()
        for one in range(0, frames):
            _merge_one_by_one(x, segment, slots, joined, merging, ordinal + one, first_slot, channel, BLOCK_SLOTS)
