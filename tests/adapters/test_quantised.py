"""Quantised models, with LoRA layers and without, against the computation on an unpatched model quantised alike.

The packages that quantise are not among those the tests install: a test is skipped where its package is absent.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fastvid_kernels.adapters import apply_fastvid
from tests.adapters import independent, qwen_independent, test_onevision_prefill, tiny, tiny_qwen
from tests.adapters.test_onevision_prefill import video_prompt

SKIPPED = "lm_head"


def quanto(model: nn.Module, kind: str) -> None:
    package = importlib.import_module("optimum.quanto")
    package.quantize(model, weights=getattr(package, kind), exclude=[SKIPPED])
    package.freeze(model)


def torchao(model: nn.Module, kind: str) -> None:
    package = importlib.import_module("torchao.quantization")
    package.quantize_(
        model, getattr(package, kind)(), filter_fn=lambda one, name: isinstance(one, nn.Linear) and SKIPPED not in name
    )


def bitsandbytes(model: nn.Module, kind: str) -> None:
    layers = importlib.import_module("bitsandbytes").nn
    for parent in list(model.modules()):
        for name, one in list(parent.named_children()):
            if type(one) is not nn.Linear or name == SKIPPED:
                continue
            weight = one.weight.data.clone()
            size: tuple[Any, ...] = (one.in_features, one.out_features, one.bias is not None)
            if kind == "int8":
                layer = layers.Linear8bitLt(*size, has_fp16_weights=False)
                layer.weight = layers.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
            else:
                layer = layers.Linear4bit(*size, compute_dtype=torch.float32, quant_type="nf4")
                layer.weight = layers.Params4bit(weight, requires_grad=False, quant_type="nf4", blocksize=64)
            layer.bias = one.bias
            setattr(parent, name, layer)
    # Moving a layer is what quantises it.
    model.to("cpu")


WAYS = [
    (quanto, "optimum.quanto", "qint8"),
    (quanto, "optimum.quanto", "qint4"),
    (torchao, "torchao", "Int8WeightOnlyConfig"),
    (bitsandbytes, "bitsandbytes", "int8"),
    (bitsandbytes, "bitsandbytes", "nf4"),
]


@pytest.mark.parametrize("lora", [False, True], ids=["", "LoRA"])
@pytest.mark.parametrize("kind", ["llava", "qwen2.5", "qwen3"])
@pytest.mark.parametrize(("quantise", "package", "way"), WAYS, ids=[f"{one[1]} {one[2]}" for one in WAYS])
def test_logits(
    quantise: Callable[[nn.Module, str], None],
    package: str,
    way: str,
    kind: str,
    lora: bool,
    siglip_directory: Any,
    head: Any,
) -> None:
    pytest.importorskip(package)

    def made() -> Any:
        model = tiny.llava_onevision() if kind == "llava" else tiny_qwen.model(kind)
        quantise(model, way)
        if not lora:
            return model
        peft = pytest.importorskip("peft")
        torch.manual_seed(5)
        targets = ["q_proj", "v_proj", *(["qkv"] if kind != "llava" else [])]
        return peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False))

    model, twin = made(), made()
    inner = twin.base_model.model if lora else twin
    if kind == "llava":
        apply_fastvid(model, siglip=siglip_directory, **tiny.HYPERPARAMETERS)
        prompt = video_prompt(3)
        embeds, places = independent.embedded(inner, head, prompt, tiny.HYPERPARAMETERS)
        expected = independent.decoded(inner, embeds, places)
        inputs = test_onevision_prefill.inputs_of(prompt)
    else:
        apply_fastvid(model, **tiny_qwen.HYPERPARAMETERS)
        asked = tiny_qwen.prompt(kind, tiny_qwen.words(3, 5), tiny_qwen.film(3), tiny_qwen.words(4, 5))
        row = qwen_independent.embedded(kind, inner, asked, tiny_qwen.HYPERPARAMETERS)
        expected, places = qwen_independent.decoded(inner, row), row.places
        inputs = tiny_qwen.inputs_of(asked)
    found = model(**inputs).logits[0, places]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * expected.abs().max().item())
