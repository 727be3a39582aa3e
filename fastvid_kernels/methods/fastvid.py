"""FastVID, and the variants that its paper compares it with."""

from __future__ import annotations

from typing import Literal

import torch

from fastvid_kernels.api import prune
from fastvid_kernels.config import PruneConfig
from fastvid_kernels.eager.merge import merge_tokens
from fastvid_kernels.eager.pipeline import density_peaks
from fastvid_kernels.eager.products import full_precision
from fastvid_kernels.eager.salient import salient_mask
from fastvid_kernels.methods.method import Kept, Method, VideoTokens
from fastvid_kernels.methods.parts.ablations import evenly_placed_anchors, last_places, segments

_SEGMENTATIONS = ("dynamic", "fixed", "cluster")
_MERGINGS = ("density", "uniform", "cluster")


def fastvid(
    video: VideoTokens,
    config: PruneConfig,
    *,
    segmentation: Literal["dynamic", "fixed", "cluster"] = "dynamic",
    merging: Literal["density", "uniform", "cluster"] = "density",
) -> Kept:
    """FastVID by its operator, or with another segmentation (the paper's table 2) or merging (its table 4).

    Args:
        video: with its attention.
        config: all hyperparameters are used.
        segmentation: "fixed": `min_segments` segments of nearly equal length; "cluster": as many clusters of frames,
            which need not be adjacent in time.
        merging: "uniform": evenly spaced anchors among the candidates; "cluster": an anchor becomes the mean of itself
            and the tokens that joined it, and the anchors move to the last free places of their segment.
    """
    assert video.attn is not None
    if segmentation == "dynamic" and merging == "density":
        return Kept(*prune(video.tokens, video.attn, video.given_features, config=config))
    if merging == "cluster":
        config = config.replace(beta=0.0)
    order, plan = segments(video, segmentation, config)
    tokens, n = video.tokens[order], video.tokens.shape[1]
    with full_precision(tokens.device.type):
        n_salient = torch.tensor([count for segment in plan for count in segment.n_salient], device=tokens.device)
        salient = salient_mask(video.attn[order], n_salient)
        uniform = merging == "uniform"
        peaks = evenly_placed_anchors(salient, plan) if uniform else density_peaks(tokens, salient, plan, config)
        anchors = peaks.flatten().nonzero().squeeze(1)
        merged, changed = merge_tokens(tokens, salient, salient | peaks, anchors, plan, float(config.beta))
    output = tokens.flatten(0, 1).clone()
    output[anchors[changed]] = merged[changed].to(output.dtype)
    if merging == "cluster":
        places = last_places(salient, peaks, plan)
        output[places.flatten().nonzero().squeeze(1)] = output[anchors]
        peaks = places
    back = torch.argsort(order)
    return VideoTokens(output.view(-1, n, output.shape[1])[back]).kept((salient | peaks)[back])


def _check(**options: object) -> None:
    for name, value in options.items():
        known = {"segmentation": _SEGMENTATIONS, "merging": _MERGINGS}[name]
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")


METHOD = Method(
    "fastvid",
    fastvid,
    source="FastVID, arXiv 2503.11187",
    deviations="With merging by clusters, the clusters are FastVID's anchors with the tokens that join them: every "
    "token of a segment joins the most similar anchor of each anchor frame. All have the same weight in the mean.",
    needs_attention=True,
    reads=tuple(vars(PruneConfig())),
    check=_check,
)
