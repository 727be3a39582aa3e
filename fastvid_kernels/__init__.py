"""FastVID video-token pruning as one operator, `torch.ops.fastvid.prune`; importing this package registers it."""

from fastvid_kernels.api import Pruned, prune
from fastvid_kernels.config import PruneConfig
from fastvid_kernels.explain import AnchorFrame, Explanation, explain

__version__ = "0.1.0"
__all__ = ["AnchorFrame", "Explanation", "PruneConfig", "Pruned", "explain", "prune"]
