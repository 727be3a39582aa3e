"""The recurrence of Qwen3.5's linear attention in float32, since vLLM's kernel for CPUs takes bfloat16 alone.

It computes the gated delta rule (Gated Delta Networks, arXiv 2412.06464) token by token, on the states that vLLM keeps.
All else in the layer, and which states belong to which request, stays vLLM's.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let engines that start from now on compute the recurrence here."""
    from vllm.model_executor.layers.mamba.ops.cpu.gdn_attention import register_cpu_gdn_attention_ops

    register_cpu_gdn_attention_ops()
    monkeypatch.setattr(torch.ops.vllm, "cpu_gdn_attention_core", attend)


def attend(mixed: Tensor, b: Tensor, a: Tensor, output: Tensor, layer_name: Any) -> None:
    """As vLLM's operator: queries, keys and values `[tokens, channels]`, gates `[tokens, heads]`, of all requests."""
    from vllm.forward_context import get_forward_context
    from vllm.utils.torch_utils import _resolve_layer_name

    context = get_forward_context()
    if context.attn_metadata is None:
        return
    layer = context.no_compile_layers[_resolve_layer_name(layer_name)]
    batch = context.attn_metadata[layer.prefix]
    starts = batch.non_spec_query_start_loc.tolist()
    for number, slot in enumerate(batch.non_spec_state_indices_tensor.tolist()):
        part = slice(starts[number], starts[number + 1])
        # Requests that are being continued come first, one token of each.
        is_new = number >= batch.num_decodes and not batch.has_initial_state[number]
        states = [one[slot] for one in layer.kv_cache]
        if is_new:
            for state in states:
                state.zero_()
        convolved = convolve(layer, mixed[part], states[0])
        queries, keys, values = (one[0] for one in layer.rearrange_mixed_qkv(convolved))
        decay = -layer.A_log.exp() * functional.softplus(a[part] + layer.dt_bias)
        output[part] = delta_rule(queries, keys, values, decay.exp(), b[part].sigmoid(), states[1])


def convolve(layer: Any, inputs: Tensor, latest: Tensor) -> Tensor:
    """The causal convolution; `latest [width - 1, channels]`, the inputs before these, is updated."""
    weight = layer.conv1d.weight.squeeze(1)
    assert latest.shape == (weight.shape[1] - 1, weight.shape[0])
    whole = torch.cat([latest, inputs])
    latest.copy_(whole[-len(latest) :])
    windows = whole.unfold(0, weight.shape[1], 1)
    return functional.silu((windows * weight).sum(-1))


def delta_rule(queries: Tensor, keys: Tensor, values: Tensor, decay: Tensor, strength: Tensor, state: Tensor) -> Tensor:
    """Outputs `[tokens, heads, values]`; `state [heads, values, keys]` is updated."""
    shared = values.shape[1] // keys.shape[1]
    queries, keys = (
        functional.normalize(one, dim=-1, eps=1e-6).repeat_interleave(shared, dim=1) for one in (queries, keys)
    )
    outputs = []
    for query, key, value, keep, rate in zip(queries, keys, values, decay, strength, strict=True):
        state *= keep[:, None, None]
        error = value - (state @ key[:, :, None])[..., 0]
        state += (rate[:, None] * error)[:, :, None] * key[:, None, :]
        outputs.append((state @ query[:, :, None])[..., 0] / key.shape[-1] ** 0.5)
    return torch.stack(outputs)
