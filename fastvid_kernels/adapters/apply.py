"""`apply_fastvid`: one line makes a LLaVA model prune its video tokens."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn
from typing_extensions import Unpack

from fastvid_kernels.adapters.handle import FastVidHandle, check_not_patched
from fastvid_kernels.adapters.scoring import scorer
from fastvid_kernels.api import Backend
from fastvid_kernels.config import Hyperparameters, PruneConfig, resolve_config
from fastvid_kernels.vision import SiglipHead

DEFAULT_SIGLIP = "google/siglip-so400m-patch14-384"

# Class, the package that defines it, and the module here that knows it.
_ADAPTERS = {
    ("transformers", "LlavaOnevisionForConditionalGeneration"): "fastvid_kernels.adapters.llava_onevision",
    ("llava", "LlavaQwenForCausalLM"): "fastvid_kernels.adapters.llava_next",
}
_DEFAULTS = PruneConfig()


def apply_fastvid(
    model: nn.Module,
    *,
    siglip: str | Path | SiglipHead = DEFAULT_SIGLIP,
    attention: str = "siglip",
    config: PruneConfig = _DEFAULTS,
    backend: Backend = "auto",
    **hyperparameters: Unpack[Hyperparameters],
) -> FastVidHandle:
    """Make a LLaVA model prune its video tokens before its language model sees them; then call it as ever.

    Text, images and everything else about the model stay as they are. Survivors keep their original positions.

    Args:
        model: transformers' `LlavaOnevisionForConditionalGeneration`, or `LlavaQwenForCausalLM` of the llava package.
            Before `torch.compile`, and without wrappers such as a PEFT model.
        siglip: where the [CLS] attention comes from: a full SigLIP checkpoint's directory or hub id, of which the 13
            tensors of its head are read, or a `SiglipHead`. LLaVA's own checkpoints lack this head.
        attention: "siglip"; or, for a vision tower to which no SigLIP head fits, the name of a substitute, one of
            `fastvid_kernels.vision.ATTENTION_SUBSTITUTES`. None of them is the published method.
        config: the hyperparameters; those given by name override it.
        backend: as in `prune`.
        **hyperparameters: see `PruneConfig`; `retention_ratio=0.1` keeps a tenth of the video tokens.

    Returns:
        A handle whose `remove()` restores the model; as a context manager it does so at the end of the block.

    Raises:
        TypeError: no such model or hyperparameter.
        ValueError: a value is out of range, or the head does not fit the model.
        RuntimeError: the model is patched already, or its library's version is not supported.
        OSError: no SigLIP checkpoint could be read.

    Source: FastVID, arXiv 2503.11187, section 3; SPEC section 6 for positions.
    """
    adapter = _adapter_of(model)
    check_not_patched(model)
    config = resolve_config(config, hyperparameters)
    handle: FastVidHandle = adapter.patch(
        model, lambda hidden_size: scorer(siglip, attention, hidden_size), config, backend
    )
    return handle


def _adapter_of(model: nn.Module) -> Any:
    for cls in type(model).__mro__:
        name = _ADAPTERS.get((cls.__module__.partition(".")[0], cls.__name__))
        if name is not None:
            adapter = import_module(name)
            adapter.check_version()
            return adapter
    supported = " or ".join(f"{package}'s {name}" for package, name in _ADAPTERS)
    raise TypeError(f"model must be {supported}, itself and not a wrapper around it, got {type(model).__name__}")
