"""VisionZip: keep dominant tokens unchanged, and merge the rest into contextual tokens."""

from __future__ import annotations

import torch

from fastvid_kernels.config import PruneConfig
from fastvid_kernels.eager.salient import salient_mask
from fastvid_kernels.methods.method import Kept, Method, VideoTokens
from fastvid_kernels.methods.parts.groups import group_means, most_similar

# Of 64 tokens that VisionZip keeps of an image, 54 are dominant.
_DOMINANT, _OF = 54, 64


def visionzip(video: VideoTokens, config: PruneConfig) -> Kept:
    """In each frame, keep S tokens by attention, and merge the rest into C evenly spaced targets among the others.

    Each token of the rest joins its most similar target; a target becomes itself plus the mean of what joined it.
    """
    assert video.attn is not None
    frames, n, _ = video.tokens.shape
    count = config.kept_per_frame(n)
    dominant = (2 * count * _DOMINANT + _OF) // (2 * _OF)
    targets = count - dominant
    mask = salient_mask(video.attn, torch.full((frames,), dominant, device=video.attn.device))
    if targets == 0:
        return video.kept(mask)
    rest = (~mask).nonzero()[:, 1].view(frames, n - dominant)
    is_target = torch.zeros(n - dominant, dtype=torch.bool, device=mask.device)
    is_target[:: max(1, (n - dominant) // targets)][:targets] = True
    mask.scatter_(1, rest[:, is_target], True)
    output = video.tokens.clone()
    for frame, (target, others) in enumerate(zip(rest[:, is_target], rest[:, ~is_target], strict=True)):
        own, joining = video.exact[frame, target], video.exact[frame, others]
        means, _ = group_means(joining, most_similar(joining, own), targets)
        output[frame, target] = (own + means).to(output.dtype)
    return VideoTokens(output).kept(mask)


METHOD = Method(
    "visionzip",
    visionzip,
    source="VisionZip, arXiv 2412.04467",
    deviations="Similarities are computed from the tokens, since the vision tower's keys are not available; dominant "
    "and contextual tokens are chosen after projection and pooling, in the proportion 54 to 10 at every ratio.",
    needs_attention=True,
)
