"""What knows a model: `apply_fastvid` plugs the operator into LLaVA, Qwen-VL and its kin."""

from fastvid_kernels.adapters.apply import apply_fastvid
from fastvid_kernels.adapters.handle import FastVidHandle

__all__ = ["FastVidHandle", "apply_fastvid"]
