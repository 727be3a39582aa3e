"""How many tokens each frame of a segment keeps, salient ones and anchors (SPEC section 2).

Integers only: the ratios are read as decimals to 1e-6, because float64 would round some budgets down by one.
"""

from dataclasses import dataclass

MILLION = 10**6


def millionths(ratio: float) -> int:
    """A ratio in units of 1e-6, rounded to the nearest (SPEC, Symbols)."""
    return round(MILLION * ratio)


def tokens_per_frame(num_tokens: int, retention_ratio: float) -> int:
    """K, the tokens kept per frame on average out of `num_tokens` (SPEC, Symbols).

    Raises ValueError if nothing would be kept.
    """
    kept = num_tokens * millionths(retention_ratio) // MILLION
    if kept == 0:
        raise ValueError(f"retention_ratio {retention_ratio} keeps none of {num_tokens} tokens a frame")
    return kept


def anchor_positions(length: int, anchor_interval: int) -> list[int]:
    """Positions of a segment's anchor frames, ascending: every p-th, counted from its last frame."""
    return [position for position in range(length) if (length - 1 - position) % anchor_interval == 0]


@dataclass(frozen=True)
class SegmentBudget:
    """Tokens kept in one segment (SPEC section 2).

    `salient_per_frame` and `context_per_frame` have one entry per frame of the segment; the latter is 0 for
    frames that are not anchor frames, and may be 0 for an anchor frame.
    """

    anchor_positions: list[int]
    salient_per_frame: list[int]
    context_per_frame: list[int]

    @property
    def salient(self) -> int:
        """S, the tokens that ATS keeps unchanged."""
        return sum(self.salient_per_frame)

    @property
    def context(self) -> int:
        """C, the anchors that DTM keeps, with other tokens merged into them."""
        return sum(self.context_per_frame)


def shares(total: int, parts: int) -> list[int]:
    """`total` split into `parts` that differ by at most one, the larger ones first."""
    return [total // parts + (1 if part < total % parts else 0) for part in range(parts)]


def segment_budget(
    length: int, num_tokens: int, kept_per_frame: int, dtm_ratio: float, anchor_interval: int
) -> SegmentBudget:
    """Budget of a segment of `length` (L) frames of `num_tokens` (N) tokens, K of which are kept on average.

    C is capped by what the anchor frames can hold beside K salient tokens each.
    """
    anchors = anchor_positions(length, anchor_interval)
    wanted_context = kept_per_frame * length * millionths(dtm_ratio) // MILLION
    context = min(wanted_context, len(anchors) * (num_tokens - kept_per_frame))
    salient = kept_per_frame * length - context

    context_per_frame = [0] * length
    from_the_last = reversed(anchors)
    for position, share in zip(from_the_last, shares(context, len(anchors)), strict=True):
        context_per_frame[position] = share
    return SegmentBudget(anchors, shares(salient, length), context_per_frame)
