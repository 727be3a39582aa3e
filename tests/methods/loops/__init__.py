"""Every method of `fastvid_kernels.methods` again, in float64 and plain loops, from its equations.

Written from the table of the methods and the published code's behaviour, independently of the vectorised code, so that
a difference between the two shows an error. All functions take `(tokens [F, N, D], attn [F, N] | None,
frame_features [F, G] | None, cu_frames [V+1] | None, ratio, **own)` and return `(tokens [M, D] float64,
indices [M] int64)`, indices `frame * N + position`, ascending; each video is pruned alone. Of equal scores the lower
index goes first. Inputs must be finite; `sink_corrected` is a transform of `attn` alone.
"""

from .ablations import fastvid
from .adaptive import vcast, vidcom2
from .framewise import attention, check_random, pool, uniform, visionzip
from .prunevid import prunevid
from .simple_cluster import simple_cluster
from .sink import sink_corrected
from .temporal import dycoke, evs

__all__ = [
    "attention",
    "check_random",
    "dycoke",
    "evs",
    "fastvid",
    "pool",
    "prunevid",
    "simple_cluster",
    "sink_corrected",
    "uniform",
    "vcast",
    "vidcom2",
    "visionzip",
]
