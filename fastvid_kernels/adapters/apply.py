"""`apply_fastvid`: one line makes a model prune its video tokens."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from typing_extensions import Unpack

from fastvid_kernels import methods
from fastvid_kernels.adapters import llava_next, llava_onevision, qwen_vl
from fastvid_kernels.adapters.handle import FastVidHandle, check_not_patched
from fastvid_kernels.adapters.settings import Settings
from fastvid_kernels.api import Backend, check_backend
from fastvid_kernels.config import Hyperparameters, PruneConfig, resolve_config
from fastvid_kernels.methods import Method
from fastvid_kernels.vision import SiglipHead

# Each knows some classes of one package (`PACKAGE`, `MODELS`).
_ADAPTERS = (llava_onevision, llava_next, qwen_vl)


def apply_fastvid(
    model: nn.Module,
    *,
    siglip: str | Path | SiglipHead | None = None,
    attention: str | None = None,
    config: PruneConfig | None = None,
    backend: Backend = "auto",
    method: str | Method | None = None,
    sink: bool = False,
    **hyperparameters: Unpack[Hyperparameters],
) -> FastVidHandle:
    """Make a model prune its video tokens before its language model sees them; then call it as ever.

    Text, images and everything else about the model stay as they are. Survivors keep their original positions.

    Args:
        model: of transformers, `LlavaOnevisionForConditionalGeneration`, or Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Qwen3.5,
            GLM-4.1V or GLM-4.6V (`...ForConditionalGeneration`, their MoE too); or `LlavaQwenForCausalLM` of the llava
            package. Before `torch.compile`, and without wrappers such as a PEFT model.
        siglip: for LLaVA, where its [CLS] attention comes from: a full SigLIP checkpoint's directory or hub id, of
            which the 13 tensors of its head are read, or a `SiglipHead`; by default google/siglip-so400m-patch14-384.
            LLaVA's own checkpoints lack this head. Not for the others.
        attention: what says how much a token matters. By default "siglip" for LLaVA and, for the others, "mean_query",
            from their own vision tower: published for Qwen2.5-VL, an extension for its kin. These take "received" too.
            All take one of `fastvid_kernels.vision.ATTENTION_SUBSTITUTES`; none of them is the published method.
        config: the hyperparameters; those given by name override it. By default what was published for the family:
            `PruneConfig()` for LLaVA, and with `retention_ratio=0.27, tau=0.84` for the others.
        backend: as in `prune`.
        method: another way to prune, to compare FastVID with: a name of `fastvid_kernels.methods.names()`, or a method
            of `fastvid_kernels.methods.get`, its options chosen. All but FastVID read the retention ratio alone, and
            have no gradient. Where one needs no attention, none is computed, and no SigLIP head is read.
        sink: lower the attention of places that draw it in all frames, before it is used (SToP, arXiv 2604.20937).
        **hyperparameters: see `PruneConfig`; `retention_ratio=0.1` keeps a tenth of the video tokens.

    Returns:
        A handle whose `remove()` restores the model; as a context manager it does so at the end of the block.

    Raises:
        TypeError: no such model or hyperparameter, or one that the method does not read, or an argument is of a wrong
            type.
        ValueError: a value is out of range, the head does not fit the model, or the backend not its device.
        RuntimeError: the model is patched already, or its library's version is not supported.
        OSError: no SigLIP checkpoint could be read.

    Source: FastVID, arXiv 2503.11187, section 3; SPEC section 6 for positions.
    """
    adapter = _adapter_of(model)
    check_not_patched(model)
    _check_arguments(model, siglip, attention, config, backend, sink)
    other = _method(method, hyperparameters, sink)
    config = resolve_config(adapter.DEFAULTS if config is None else config, hyperparameters)
    handle: FastVidHandle = adapter.patch(model, Settings(siglip, attention, config, backend, other, sink))
    return handle


def _method(method: Any, hyperparameters: Hyperparameters, sink: bool) -> Method | None:
    """What prunes instead of the operator, which is FastVID itself."""
    if isinstance(method, str):
        method = methods.get(method)
    if method is None:
        return None
    if not isinstance(method, Method):
        raise TypeError(f"method must be a name, a Method or None, got {type(method).__name__}")
    if method.name == "fastvid" and not method.chosen:
        return None
    unread = hyperparameters.keys() - {"retention_ratio"}
    if unread and method.name != "fastvid":
        raise TypeError(f"{', '.join(sorted(unread))} must be left out: {method.name} reads retention_ratio alone")
    if sink and not method.needs_attention:
        raise ValueError(f"sink must be False for {method.name}, which reads no attention, got True")
    return method


def _check_arguments(model: nn.Module, siglip: Any, attention: Any, config: Any, backend: Any, sink: Any) -> None:
    if not isinstance(sink, bool):
        raise TypeError(f"sink must be True or False, got {sink!r}")
    for name, value, kinds in (
        ("siglip", siglip, (str, Path, SiglipHead)),
        ("attention", attention, (str,)),
        ("config", config, (PruneConfig,)),
    ):
        if value is not None and not isinstance(value, kinds):
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise TypeError(f"{name} must be {expected} or None, got {type(value).__name__}")
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    check_backend(backend, device)


def _adapter_of(model: nn.Module) -> ModuleType:
    for cls in type(model).__mro__:
        package = cls.__module__.partition(".")[0]
        for adapter in _ADAPTERS:
            if package == adapter.PACKAGE and cls.__name__ in adapter.MODELS:
                adapter.check_version()
                return adapter
    supported = "; ".join(f"{adapter.PACKAGE}'s {', '.join(adapter.MODELS)}" for adapter in _ADAPTERS)
    raise TypeError(f"model must be one of {supported}; itself and not a wrapper around it; got {type(model).__name__}")
