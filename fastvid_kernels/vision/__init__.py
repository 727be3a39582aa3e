"""[CLS] attention and global frame features: SigLIP's head, and the pooling of its attention to a model's tokens.

`config` and `head` define the head, `files` and `checkpoint` load one, and `pooling` pools its attention to the token
grid. `cls_attention` is for towers with a [CLS] token, `tower_attention` for towers with neither token nor head,
`substitutes` for any, and `sinks` lowers the attention of sinks. Nothing here depends on a language model.
"""

from fastvid_kernels.vision.checkpoint import load_siglip_head
from fastvid_kernels.vision.cls_attention import cls_attention
from fastvid_kernels.vision.config import SiglipHeadConfig
from fastvid_kernels.vision.head import HeadOutput, SiglipHead
from fastvid_kernels.vision.pooling import PoolingMode, pool_to_grid, pooled_grid
from fastvid_kernels.vision.sinks import sink_score, without_sinks
from fastvid_kernels.vision.substitutes import ATTENTION_SUBSTITUTES
from fastvid_kernels.vision.tower_attention import TOWER_ATTENTION, TowerScore, mean_query, received, rotated

__all__ = [
    "ATTENTION_SUBSTITUTES",
    "TOWER_ATTENTION",
    "HeadOutput",
    "PoolingMode",
    "SiglipHead",
    "SiglipHeadConfig",
    "TowerScore",
    "cls_attention",
    "load_siglip_head",
    "mean_query",
    "pool_to_grid",
    "pooled_grid",
    "received",
    "rotated",
    "sink_score",
    "without_sinks",
]
