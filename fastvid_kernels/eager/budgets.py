"""How many tokens every frame of a segment keeps, and for which reason (SPEC section 2). Integers only."""

from __future__ import annotations

from dataclasses import dataclass

from fastvid_kernels.config import PruneConfig


@dataclass(frozen=True)
class Segment:
    """A run of similar frames and its budget.

    Attributes:
        start: index of its first frame in the batch.
        length: L, its number of frames.
        n_salient: tokens each of its frames keeps for their attention, in frame order.
        anchor_frames: indices of its anchor frames in the batch, ascending.
        n_context: anchors that each anchor frame provides, in the order of `anchor_frames`.
    """

    start: int
    length: int
    n_salient: tuple[int, ...]
    anchor_frames: tuple[int, ...]
    n_context: tuple[int, ...]

    @property
    def end(self) -> int:
        """One past the index of its last frame."""
        return self.start + self.length


def plan_segment(start: int, length: int, tokens_per_frame: int, config: PruneConfig) -> Segment:
    """Share a segment's K * L tokens among its frames: S salient ones, and C anchors in every p-th frame."""
    kept_per_frame = config.kept_per_frame(tokens_per_frame)
    kept = kept_per_frame * length
    from_the_last = range(start + length - 1, start - 1, -config.anchor_interval)
    # An anchor frame that keeps K salient tokens has N - K left for anchors. Only a large R reaches this cap.
    context = min(config.context_share(kept), len(from_the_last) * (tokens_per_frame - kept_per_frame))
    return Segment(
        start=start,
        length=length,
        n_salient=_share_evenly(kept - context, length),
        anchor_frames=tuple(reversed(from_the_last)),
        n_context=tuple(reversed(_share_evenly(context, len(from_the_last)))),
    )


def _share_evenly(total: int, parts: int) -> tuple[int, ...]:
    quotient, remainder = divmod(total, parts)
    return (quotient + 1,) * remainder + (quotient,) * (parts - remainder)
