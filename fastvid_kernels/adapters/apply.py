"""`apply_fastvid`: one line makes a model prune its video tokens."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from typing_extensions import Unpack

from fastvid_kernels import methods
from fastvid_kernels.adapters import llava_next, llava_next_video, llava_onevision, qwen_vl
from fastvid_kernels.adapters.handle import FastVidHandle, check_not_patched
from fastvid_kernels.adapters.settings import Settings
from fastvid_kernels.api import Backend, check_backend
from fastvid_kernels.config import Hyperparameters, PruneConfig, resolve_config
from fastvid_kernels.methods import Method
from fastvid_kernels.vision import SiglipHead

# Each adapter supports some classes (`MODELS`) of one package (`PACKAGE`).
_ADAPTERS = (llava_onevision, llava_next_video, llava_next, qwen_vl)


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
    """Patch a model so that it prunes video tokens before its language model runs; call the model as before.

    The rest of the model, text and images do not change. Kept tokens keep their original positions.

    Args:
        model: from transformers, the `...ForConditionalGeneration` class of LLaVA-OneVision, LLaVA-NeXT-Video,
            Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Qwen3.5 (the last two also as MoE), GLM-4.1V, GLM-4.5V or GLM-4.6V, and the
            `...ThinkerForConditionalGeneration` of Qwen2.5-Omni or Qwen3-Omni; from the llava package,
            `LlavaQwenForCausalLM`. PEFT's `PeftModel` around one is accepted. Any other wrapper, such as
            `torch.compile` or `DistributedDataParallel`, goes around the patched model.
        siglip: for LLaVA-OneVision and LLaVA-Video only: the SigLIP head that gives [CLS] attention, because their own
            checkpoints lack it. A `SiglipHead`, or the directory or hub id of a full SigLIP checkpoint, of which only
            the 13 tensors of the head are read. Default: google/siglip-so400m-patch14-384.
        attention: name of the score that ranks tokens. LLaVA-OneVision and LLaVA-Video default to "siglip",
            LLaVA-NeXT-Video to "cls", which is what the [CLS] of its own tower attends to. The other models default to
            "mean_query", computed from their own vision tower: published for Qwen2.5-VL, an extension for the rest.
            They also accept "received". Every model accepts the names in
            `fastvid_kernels.vision.ATTENTION_SUBSTITUTES`, none of which is the published method.
        config: the hyperparameters; keyword hyperparameters override them. The default is what was published for the
            model family: `PruneConfig()` for LLaVA, `PruneConfig(retention_ratio=0.27, tau=0.84)` for the others.
        backend: as in `prune`; other methods, and FastVID's options, are plain PyTorch on any of them.
        method: another pruning method, to compare with FastVID: a name from `fastvid_kernels.methods.names()`, or a
            method with options from `fastvid_kernels.methods.get`. Methods other than FastVID read no hyperparameter
            but `retention_ratio`, and "prunevid" none. Only FastVID without options has a gradient. If the method needs
            no attention, none is computed and no SigLIP head is read, unless `siglip` or `attention` is given.
        sink: lower the attention of positions that attract it in all frames (attention sinks) before tokens are
            ranked (SToP, arXiv 2604.20937).
        **hyperparameters: see `PruneConfig`; `retention_ratio=0.1` keeps a tenth of the video tokens.

    Returns:
        A handle; its `remove()` restores the model. As a context manager, it restores the model when the block ends.

    Raises:
        TypeError: the model or a hyperparameter is not known, the method does not read a given hyperparameter, or an
            argument has the wrong type.
        ValueError: a value is out of range, the SigLIP head does not fit the model, or the backend does not support
            the model's device.
        RuntimeError: the model is already patched, or the installed version of transformers is not supported.
        OSError: the SigLIP checkpoint could not be read.

    Source: FastVID, arXiv 2503.11187, section 3; docs/spec.md, section 6, for positions.
    """
    model = _without_peft(model)
    adapter = _adapter_of(model)
    check_not_patched(model)
    _check_arguments(model, siglip, attention, config, backend, sink)
    other = _method(method, hyperparameters, sink)
    config = resolve_config(adapter.DEFAULTS if config is None else config, hyperparameters)
    handle: FastVidHandle = adapter.patch(model, Settings(siglip, attention, config, backend, other, sink))
    return handle


def _method(method: Any, hyperparameters: Hyperparameters, sink: bool) -> Method | None:
    """The method that prunes instead of the operator; None for FastVID itself, which is the operator."""
    if isinstance(method, str):
        method = methods.get(method)
    if method is None:
        return None
    if not isinstance(method, Method):
        raise TypeError(f"method must be a name, a Method or None, got {type(method).__name__}")
    if method.name == "fastvid" and not method.chosen:
        return None
    unread = hyperparameters.keys() & vars(PruneConfig()).keys() - set(method.reads)
    if unread:
        reads = f"only {', '.join(method.reads)}" if method.reads else "no hyperparameter"
        raise TypeError(f"{', '.join(sorted(unread))} must be left out: {method.name} reads {reads}")
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


def _without_peft(model: nn.Module) -> nn.Module:
    """The model in a `PeftModel`, if that has only replaced layers of it, as LoRA does.

    Raises:
        TypeError: it does more: it adds a learned prompt, runs the model twice, or counts tokens from the end of a row.
    """
    if not _is_of_peft(model, "PeftModel", "PeftMixedModel"):
        return model
    peft_model: Any = model
    configs = peft_model.peft_config.values()
    counts_tokens = any(getattr(one, "alora_invocation_tokens", None) is not None for one in configs)
    kinds = {str(getattr(one.peft_type, "value", one.peft_type)) for one in configs}
    if not _is_of_peft(peft_model.base_model) or "XLORA" in kinds or counts_tokens:
        raise TypeError(
            "model must be a PEFT model whose adapters only replace layers, as LoRA does, got "
            f"{'LORA with alora_invocation_tokens' if counts_tokens else ', '.join(sorted(kinds))}"
        )
    wrapped: nn.Module = peft_model.base_model.model
    return wrapped


def _is_of_peft(model: nn.Module, *names: str) -> bool:
    """Whether a class of PEFT, of one of these names if any are given, is among a module's."""
    classes = [cls for cls in type(model).__mro__ if cls.__module__.partition(".")[0] == "peft"]
    return any(not names or cls.__name__ in names for cls in classes)


def _adapter_of(model: nn.Module) -> ModuleType:
    for cls in type(model).__mro__:
        package = cls.__module__.partition(".")[0]
        for adapter in _ADAPTERS:
            if package == adapter.PACKAGE and cls.__name__ in adapter.MODELS:
                adapter.check_version()
                return adapter
    names: dict[str, list[str]] = {}
    for adapter in _ADAPTERS:
        names.setdefault(adapter.PACKAGE, []).extend(adapter.MODELS)
    supported = "; ".join(f"{', '.join(own)} of {package}" for package, own in names.items())
    raise TypeError(f"model must be one of {supported}, and not a wrapper around one, got {type(model).__name__}")
