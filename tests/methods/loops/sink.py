"""SToP's correction of attention."""

import torch
from torch import Tensor

from .common import CuFrames, mean, minmax, videos


def sink_corrected(attn: Tensor, cu_frames: CuFrames = None) -> Tensor:
    """`a - 0.02 sink`, `sink_n = minmax over n of (mean over f of a_fn) ** 1.1` of each video: `[F, N]` float64."""
    corrected = attn.double().clone()
    for start, a in videos(attn[:, :, None], cu_frames):
        average = mean(list(a[:, :, 0]))
        sink = torch.tensor(minmax([value**1.1 for value in average.tolist()]), dtype=torch.float64)
        for frame in range(start, start + len(a)):
            corrected[frame] = corrected[frame] - 0.02 * sink
    return corrected
