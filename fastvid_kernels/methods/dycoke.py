"""DyCoke's temporal merging: drop tokens that repeat the same place in another frame."""

from __future__ import annotations

import torch

from fastvid_kernels.config import MILLION, PruneConfig
from fastvid_kernels.methods.method import Kept, Method, VideoTokens
from fastvid_kernels.methods.parts.ranking import cosine, highest

# Maps each frame of a group of four to the frame it is compared with; the first frame is kept whole.
_COMPARED_WITH = {1: 0, 3: 2, 2: 0}


def dycoke(video: VideoTokens, config: PruneConfig) -> Kept:
    """Of every four frames, keep the first whole, and the tokens of the others that are least similar.

    A token is compared with the token at the same place in the frame that `_COMPARED_WITH` names.
    """
    frames, n, _ = video.tokens.shape
    count = _kept_of_others(n, config)
    mask = torch.ones(frames, n, dtype=torch.bool, device=video.tokens.device)
    for place, earlier in _COMPARED_WITH.items():
        later = video.exact[place::4]
        similarity = cosine(later, video.exact[earlier::4][: len(later)])
        mask[place::4] = highest(-similarity, count)
    return video.kept(mask)


def _kept_of_others(tokens_per_frame: int, config: PruneConfig) -> int:
    """Keep 1 - k = (4R - 1) / 3 of the tokens, so that a group of four frames keeps R; none below R = 1/4."""
    return max(0, tokens_per_frame * (4 * config.retention_millionths - MILLION) // (3 * MILLION))


def _rows(frames: int, tokens_per_frame: int, config: PruneConfig) -> int:
    whole = (frames + 3) // 4
    return whole * tokens_per_frame + (frames - whole) * _kept_of_others(tokens_per_frame, config)


METHOD = Method(
    "dycoke",
    dycoke,
    source="DyCoke, arXiv 2411.15024, its token temporal merging",
    deviations="The retention ratio sets the merging rate k, 0.7 in the published code, and no ratio below a quarter "
    "is reached. A last group of fewer than four frames is merged like the others; the published code keeps its third "
    "frame whole and drops a frame that has no partner. DyCoke's pruning of the cache during decoding is left out.",
    rows=_rows,
)
