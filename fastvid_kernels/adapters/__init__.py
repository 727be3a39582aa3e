"""Model adapters: `apply_fastvid` adds FastVID pruning to LLaVA, Qwen-VL and related models."""

from fastvid_kernels.adapters.apply import apply_fastvid
from fastvid_kernels.adapters.handle import FastVidHandle

__all__ = ["FastVidHandle", "apply_fastvid"]
