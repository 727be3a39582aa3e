"""Loading: every form of a full checkpoint, the 13 tensors and no others, and every way to fail."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from fastvid_kernels.vision import load_siglip_head
from tests.vision.models import HIDDEN, full_model, pixels, vision_model

PREFIX = "vision_model."


@pytest.fixture(scope="module")
def full() -> PreTrainedModel:
    return full_model()


@pytest.fixture
def saved(full: PreTrainedModel, tmp_path: Path) -> Path:
    """The whole model in one file."""
    full.save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def sharded(full: PreTrainedModel, tmp_path: Path) -> Path:
    """The whole model in many files, the head in several of them."""
    full.save_pretrained(tmp_path, max_shard_size="12KB")
    assert len(head_shards(tmp_path)) > 1
    assert head_shards(tmp_path) < {file.name for file in tmp_path.glob("*.safetensors")}
    return tmp_path


def head_shards(directory: Path) -> set[str]:
    shards = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    return {shard for name, shard in shards.items() if name.startswith((f"{PREFIX}head.", f"{PREFIX}post_layernorm."))}


def check_parity(source: str | Path, vision: Any) -> None:
    with torch.no_grad():
        output = vision(pixels(), output_hidden_states=True)
    features = load_siglip_head(source)(output.hidden_states[-1]).features
    torch.testing.assert_close(features, output.pooler_output, rtol=1e-5, atol=1e-6)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the tensors read from now on."""
    names: list[str] = []
    opened = safetensors.safe_open

    class Spy:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.file = opened(*arguments, **options)

        def __enter__(self) -> Spy:
            self.file.__enter__()
            return self

        def __exit__(self, *error: Any) -> None:
            self.file.__exit__(*error)

        def __getattr__(self, name: str) -> Any:
            assert name in ("keys", "get_slice"), f"reads through {name}"
            return getattr(self.file, name)

        def get_tensor(self, name: str) -> torch.Tensor:
            names.append(name)
            return self.file.get_tensor(name)

    monkeypatch.setattr(safetensors, "safe_open", Spy)
    return names


def test_a_whole_model(saved: Path, full: Any) -> None:
    check_parity(saved, full.vision_model)
    check_parity(str(saved), full.vision_model)


def test_a_sharded_model(sharded: Path, full: Any) -> None:
    check_parity(sharded, full.vision_model)


def test_a_vision_model_alone(tmp_path: Path) -> None:
    vision = vision_model(num_attention_heads=2, layer_norm_eps=1e-2)
    vision.save_pretrained(tmp_path)
    check_parity(tmp_path, vision)


def test_a_vision_model_alone_as_transformers_4_saved_it(tmp_path: Path) -> None:
    vision = vision_model()
    vision.save_pretrained(tmp_path)
    edit_tensors(tmp_path, lambda tensors: {PREFIX + name: tensor for name, tensor in tensors.items()})
    check_parity(tmp_path, vision)


@pytest.mark.parametrize("whole", [True, False])
def test_siglip2_has_the_same_head(whole: bool, full: Any, tmp_path: Path) -> None:
    (full if whole else full.vision_model).save_pretrained(tmp_path)
    edit_config(tmp_path, model_type="siglip2" if whole else "siglip2_vision_model")
    check_parity(tmp_path, full.vision_model)


def test_the_home_directory_may_be_short(saved: Path, full: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(saved.parent))
    check_parity(f"~/{saved.name}", full.vision_model)


@pytest.mark.parametrize("form", ["saved", "sharded"])
def test_only_the_13_tensors_are_read(form: str, read: list[str], request: pytest.FixtureRequest) -> None:
    head = load_siglip_head(request.getfixturevalue(form))
    assert len(read) == len(set(read)) == len(head.state_dict()) == 13
    assert all(name.startswith((f"{PREFIX}head.", f"{PREFIX}post_layernorm.")) for name in read)


def test_other_shards_are_not_needed(sharded: Path, full: Any) -> None:
    needed = head_shards(sharded)
    for shard in sharded.glob("*.safetensors"):
        if shard.name not in needed:
            shard.unlink()
    check_parity(sharded, full.vision_model)


def test_keys_left_out_of_config_have_transformers_defaults(tmp_path: Path) -> None:
    """The config.json of google/siglip-base-patch16-224 names none of the sizes."""
    vision = vision_model(hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=1)
    vision.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "siglip", "vision_config": {}}')
    with torch.no_grad():
        output = vision(pixels(), output_hidden_states=True)
    features = load_siglip_head(tmp_path)(output.hidden_states[-1]).features
    torch.testing.assert_close(features, output.pooler_output, rtol=1e-5, atol=1e-5)


def test_dtype_and_device(saved: Path) -> None:
    head = load_siglip_head(saved, dtype=torch.bfloat16, device="cpu")
    assert {weight.dtype for weight in head.parameters()} == {torch.bfloat16}
    assert {str(weight.device) for weight in load_siglip_head(saved, device="meta").parameters()} == {"meta"}


def test_as_stored_ready_for_inference(saved: Path) -> None:
    edit_tensors(saved, lambda tensors: {name: tensor.half() for name, tensor in tensors.items()})
    head = load_siglip_head(saved)
    assert {weight.dtype for weight in head.parameters()} == {torch.float16}
    assert not head.training
    assert not any(weight.requires_grad for weight in head.parameters())


def edit_tensors(directory: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(directory / "model.safetensors")), directory / "model.safetensors")


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_vision_config(directory: Path, **changes: Any) -> None:
    vision = json.loads((directory / "config.json").read_text())["vision_config"]
    edit_config(directory, vision_config=vision | changes)


def with_tensor(name: str, tensor: torch.Tensor | None) -> Callable[[Path], None]:
    def spoil(directory: Path) -> None:
        def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            assert name in tensors
            return {n: tensor if n == name else t for n, t in tensors.items() if n != name or tensor is not None}

        edit_tensors(directory, change)

    return spoil


def without_head(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: {n: t for n, t in tensors.items() if not n.startswith(f"{PREFIX}head.")})


def truncated(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def git_lfs_pointer(directory: Path) -> None:
    (directory / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")


def pickled(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def text(name: str, content: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).write_text(content) and None


SPOILT: dict[str, tuple[Callable[[Path], None], type[Exception], str]] = {
    "a tensor is missing": (
        with_tensor(f"{PREFIX}head.mlp.fc2.bias", None),
        ValueError,
        "must hold the 13 tensors of a SigLIP head, and lacks vision_model.head.mlp.fc2.bias: give a full SigLIP",
    ),
    "the head is missing": (without_head, ValueError, "such as google/siglip-so400m-patch14-384 (the vision towers"),
    "a tensor is too small": (
        with_tensor(f"{PREFIX}head.layernorm.weight", torch.ones(HIDDEN - 1)),
        ValueError,
        "vision_model.head.layernorm.weight must be of shape [32] to fit config.json, got [31]",
    ),
    "a tensor has another rank": (
        with_tensor(f"{PREFIX}head.probe", torch.ones(HIDDEN)),
        ValueError,
        "vision_model.head.probe must be of shape [1, 1, 32] to fit config.json, got [32]",
    ),
    "a quantised tensor": (
        with_tensor(f"{PREFIX}head.mlp.fc1.bias", torch.ones(48, dtype=torch.int8)),
        ValueError,
        "vision_model.head.mlp.fc1.bias must be float32, bfloat16 or float16, got torch.int8",
    ),
    "another hidden size": (
        lambda directory: edit_vision_config(directory, hidden_size=64),
        ValueError,
        "vision_model.head.probe must be of shape [1, 1, 64] to fit config.json, got [1, 1, 32]",
    ),
    "another intermediate size": (
        lambda directory: edit_vision_config(directory, intermediate_size=64),
        ValueError,
        "vision_model.head.mlp.fc1.weight must be of shape [64, 32] to fit config.json, got [48, 32]",
    ),
    "heads that do not divide": (
        lambda directory: edit_vision_config(directory, num_attention_heads=5),
        ValueError,
        "config.json: num_attention_heads must divide hidden_size, 32, got 5",
    ),
    "no heads": (
        lambda directory: edit_vision_config(directory, num_attention_heads=0),
        ValueError,
        "num_attention_heads must be at least 1, got 0",
    ),
    "heads in words": (
        lambda directory: edit_vision_config(directory, num_attention_heads="four"),
        TypeError,
        "config.json: num_attention_heads must be an integer, got 'four'",
    ),
    "epsilon 0": (
        lambda directory: edit_vision_config(directory, layer_norm_eps=0),
        ValueError,
        "layer_norm_eps must be positive and finite, got 0",
    ),
    "no epsilon": (
        lambda directory: edit_vision_config(directory, layer_norm_eps=None),
        TypeError,
        "layer_norm_eps must be a number, got None",
    ),
    "another activation": (
        lambda directory: edit_vision_config(directory, hidden_act="quick_gelu"),
        ValueError,
        "hidden_act must be 'gelu_pytorch_tanh', as in every SigLIP head, got 'quick_gelu'",
    ),
    "another model": (
        lambda directory: edit_config(directory, model_type="llava_onevision"),
        ValueError,
        "siglip2_vision_model, got 'llava_onevision': give a full SigLIP checkpoint, such as google/siglip-so400m",
    ),
    "no vision_config": (
        lambda directory: edit_config(directory, vision_config=None),
        ValueError,
        "vision_config must be an object, as in every siglip checkpoint, got None",
    ),
    "config is no JSON": (text("config.json", "{"), ValueError, "config.json must be a JSON file, and cannot be read"),
    "config is a list": (text("config.json", "[]"), ValueError, "config.json must hold a JSON object, got list"),
    "config is missing": (
        lambda directory: (directory / "config.json").unlink(),
        FileNotFoundError,
        "must contain config.json; it has model.safetensors",
    ),
    "truncated": (truncated, ValueError, "model.safetensors must be a whole safetensors file, and cannot be read"),
    "empty": (text("model.safetensors", ""), ValueError, "must be a whole safetensors file, and cannot be read"),
    "git-lfs pointer": (git_lfs_pointer, ValueError, "must be a whole safetensors file, and cannot be read"),
    "pickled": (
        pickled,
        FileNotFoundError,
        "must contain model.safetensors or model.safetensors.index.json; it has config.json, pytorch_model.bin",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_checkpoint_is_refused(name: str, saved: Path) -> None:
    spoil, error, message = SPOILT[name]
    spoil(saved)
    with pytest.raises(error, match=re.escape(message)) as refused:
        load_siglip_head(saved)
    assert str(saved) in str(refused.value)


def test_a_llava_vision_tower_is_refused(tmp_path: Path) -> None:
    vision_model(vision_use_head=False).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=re.escape("lacks head.probe, head.attention.in_proj_weight")) as refused:
        load_siglip_head(tmp_path)
    assert "give a full SigLIP checkpoint, such as google/siglip-so400m-patch14-384" in str(refused.value)


SPOILT_SHARDS: dict[str, tuple[Callable[[dict[str, Any], str], dict[str, Any]], type[Exception], str]] = {
    "no map": (lambda index, _: {"metadata": {}}, ValueError, "weight_map must be an object that gives the file of"),
    "a map of numbers": (
        lambda index, _: {"weight_map": dict.fromkeys(index["weight_map"], 1)},
        ValueError,
        "weight_map must be an object that gives the file of",
    ),
    "a shard that is not there": (
        lambda index, probe: {"weight_map": index["weight_map"] | {probe: "gone.safetensors"}},
        FileNotFoundError,
        "must contain gone.safetensors; it has",
    ),
    "the wrong shard": (
        lambda index, probe: {
            "weight_map": index["weight_map"] | {probe: index["weight_map"]["text_model.head.weight"]}
        },
        ValueError,
        "must hold vision_model.head.probe, as model.safetensors.index.json says, and does not",
    ),
}


@pytest.mark.parametrize("name", SPOILT_SHARDS)
def test_a_spoilt_index_is_refused(name: str, sharded: Path) -> None:
    spoil, error, message = SPOILT_SHARDS[name]
    path = sharded / "model.safetensors.index.json"
    path.write_text(json.dumps(spoil(json.loads(path.read_text()), f"{PREFIX}head.probe")))
    with pytest.raises(error, match=re.escape(message)):
        load_siglip_head(sharded)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, "float32"])
def test_other_dtypes_are_refused(dtype: Any, saved: Path) -> None:
    with pytest.raises(TypeError, match=f"dtype must be float32, bfloat16 or float16, got {dtype}"):
        load_siglip_head(saved, dtype=dtype)


def test_without_safetensors(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=re.escape('pip install "fastvid_kernels[transformers]"')):
        load_siglip_head(saved)
