"""[CLS] attention and global frame features: SigLIP's head, and the pooling of its attention to a model's tokens.

`config` and `head` are the head itself, `files` and `checkpoint` load one, `pooling` brings its attention to the
token grid, and `substitutes` are there for models without it. Knows no language model.
"""

from fastvid_kernels.vision.checkpoint import load_siglip_head
from fastvid_kernels.vision.config import SiglipHeadConfig
from fastvid_kernels.vision.head import HeadOutput, SiglipHead
from fastvid_kernels.vision.pooling import PoolingMode, pool_to_grid, pooled_grid
from fastvid_kernels.vision.substitutes import ATTENTION_SUBSTITUTES

__all__ = [
    "ATTENTION_SUBSTITUTES",
    "HeadOutput",
    "PoolingMode",
    "SiglipHead",
    "SiglipHeadConfig",
    "load_siglip_head",
    "pool_to_grid",
    "pooled_grid",
]
