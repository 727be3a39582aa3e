"""`explain`: a prune with its reasons."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# The same as `torch.compiler.disable`, but importing it does not import the compiler.
from torch._compile import _disable_dynamo
from typing_extensions import Unpack

from fastvid_kernels import eager
from fastvid_kernels.config import Hyperparameters, PruneConfig, resolve_config
from fastvid_kernels.eager.merge import Joined
from fastvid_kernels.eager.pipeline import Trace
from fastvid_kernels.validation import check_inputs, read_cu_frames

_DEFAULTS = PruneConfig()


@dataclass(frozen=True)
class AnchorFrame:
    """One anchor frame, its anchors, and the tokens that joined them.

    Attributes:
        frame: index of the frame.
        anchors: int64 `[n]`, flat indices of its anchors, ascending.
        joined: int64 `[P]`, flat indices of the tokens of its segment that joined one of them, ascending.
        joined_anchor: int64 `[P]`, flat index of the anchor that each of them joined.
    """

    frame: int
    anchors: Tensor
    joined: Tensor
    joined_anchor: Tensor


@dataclass(frozen=True)
class Explanation:
    """What `prune` returns, and why. Flat indices are `frame * N + position`.

    Attributes:
        tokens: `[F * K, D]`, the kept tokens.
        indices: int64 `[F * K]`, their flat indices, ascending.
        segments: int64 `[S, 2]`, first frame of each segment and one past its last.
        salient: int64, flat indices of the tokens kept for their attention, ascending.
        anchors: int64, flat indices of the tokens kept as density peaks, ascending.
        anchor_frames: the frames that provide anchors, in order.
    """

    tokens: Tensor
    indices: Tensor
    segments: Tensor
    salient: Tensor
    anchors: Tensor
    anchor_frames: tuple[AnchorFrame, ...]


# The lengths of its lists depend on data, so `torch.compile` breaks the graph around it.
@_disable_dynamo
def explain(
    tokens: Tensor,
    attn: Tensor,
    frame_features: Tensor | None = None,
    cu_frames: Tensor | None = None,
    *,
    config: PruneConfig = _DEFAULTS,
    **hyperparameters: Unpack[Hyperparameters],
) -> Explanation:
    """Prune as `prune` does, by the eager backend, and say why each token was kept or where it went.

    Args and errors are those of `prune`; dense batches and `backend` are not accepted. The tokens have no gradient.
    """
    config = resolve_config(config, hyperparameters)
    check_inputs(tokens, attn, frame_features, cu_frames, config)
    video_starts = read_cu_frames(cu_frames, tokens.shape[0])
    trace = Trace()
    kept, indices = eager.prune(tokens, attn, frame_features, video_starts, config, trace)
    assert trace.anchors is not None
    return Explanation(
        tokens=kept,
        indices=indices,
        segments=torch.tensor([(segment.start, segment.end) for segment in trace.plan], device=tokens.device),
        salient=indices[~torch.isin(indices, trace.anchors)],
        anchors=trace.anchors,
        anchor_frames=_anchor_frames(trace.anchors, trace.joined, tokens.shape[1]),
    )


def _anchor_frames(anchors: Tensor, joined: list[Joined], tokens_per_frame: int) -> tuple[AnchorFrame, ...]:
    frames = anchors // tokens_per_frame
    token = torch.cat([block.token for block in joined] or [anchors])
    token, order = token.sort(stable=True)
    slot = torch.cat([block.slot for block in joined] or [anchors])[order]
    return tuple(
        AnchorFrame(
            frame=frame,
            anchors=anchors[frames == frame],
            joined=token[frames[slot] == frame],
            joined_anchor=anchors[slot[frames[slot] == frame]],
        )
        for frame in frames.unique().tolist()
    )
