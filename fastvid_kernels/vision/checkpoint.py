"""Load a SigLIP head from a full checkpoint: its 13 tensors and no others."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastvid_kernels.vision.config import FULL_CHECKPOINT_ADVICE, SiglipHeadConfig
from fastvid_kernels.vision.files import INSTALL, CheckpointFiles, open_checkpoint
from fastvid_kernels.vision.head import SiglipHead

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PREFIXES = ("vision_model.", "")  # a vision model saved alone by transformers 5 has no prefix
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def load_siglip_head(
    source: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    revision: str | None = None,
) -> SiglipHead:
    """Load the head of a full SigLIP or SigLIP2 checkpoint, ready for inference.

    Args:
        source: a checkpoint's directory with `config.json` and safetensors, sharded or not; or its id on the
            Hugging Face hub. Only the needed shards are downloaded; a checkpoint in one file is downloaded whole.
        dtype: float32, bfloat16 or float16; default: as stored.
        device: where to put it; default: the CPU.
        revision: branch, tag or commit of a hub id; None for a directory. `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE`
            apply as usual.

    Returns:
        The head, in evaluation mode, without gradients. About 61 MB in float32 for so400m.

    Raises:
        ImportError: safetensors or huggingface_hub is not installed.
        FileNotFoundError: there is no such directory, hub id, or file in it.
        OSError: the hub cannot be reached, or does not give the file.
        TypeError: `source` is neither a string nor a path, `dtype` is not supported, or an entry of config.json has the
            wrong type.
        ValueError: a file cannot be read; the checkpoint is of another model or has no head; a tensor is missing or has
            the wrong shape or dtype.
    """
    if dtype is not None and dtype not in _DTYPES:
        raise TypeError(f"dtype must be float32, bfloat16 or float16, got {dtype}")
    files = open_checkpoint(source, revision)
    config = _read_config(files.find("config.json"))
    with torch.device("meta"):
        head = SiglipHead(config)
    tensors = _read_tensors(files, {name: list(weight.shape) for name, weight in head.state_dict().items()})
    dtype = dtype or tensors["probe"].dtype
    head.load_state_dict({name: weight.to(device, dtype) for name, weight in tensors.items()}, assign=True)
    return head.eval().requires_grad_(False)


def _read_config(path: Path) -> SiglipHeadConfig:
    content = _read_json(path)
    try:
        return SiglipHeadConfig.from_json(content)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path}: {error}") from error


def _read_tensors(files: CheckpointFiles, shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """The head's tensors, by the name they have in `SiglipHead`."""
    weights = files.find(_SINGLE, _INDEX)
    shards = _read_index(weights) if weights.name == _INDEX else dict.fromkeys(_stored_names(weights), _SINGLE)
    names = _names_in_checkpoint(shapes, shards.keys(), files.name)
    tensors: dict[str, Tensor] = {}
    for shard in sorted({shards[stored] for stored in names.values()}):
        in_shard = {name: stored for name, stored in names.items() if shards[stored] == shard}
        path = weights if shard == weights.name else files.find(shard)
        tensors |= _read_shard(path, in_shard, shapes)
    return tensors


def _names_in_checkpoint(head_names: Iterable[str], stored: Set[str], source: str) -> dict[str, str]:
    """The checkpoint's name of each tensor of the head, after checking that none is missing."""

    def with_prefix(prefix: str) -> dict[str, str]:
        return {n: f"{prefix}{n}" if n.startswith("post_layernorm.") else f"{prefix}head.{n}" for n in head_names}

    names = max(map(with_prefix, _PREFIXES), key=lambda names: len(stored & set(names.values())))
    missing = [name for name in names.values() if name not in stored]
    if missing:
        raise ValueError(
            f"{source} must hold the {len(names)} tensors of a SigLIP head, and lacks {', '.join(missing)}: "
            f"{FULL_CHECKPOINT_ADVICE} (the vision towers of LLaVA checkpoints leave the head out)"
        )
    return names


def _read_shard(path: Path, names: dict[str, str], shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    with _open_safetensors(path) as file:
        absent = sorted(set(names.values()) - set(file.keys()))
        if absent:
            raise ValueError(f"{path} must hold {', '.join(absent)}, as {_INDEX} says, and does not")
        for name, stored in names.items():
            shape = list(file.get_slice(stored).get_shape())
            if shape != shapes[name]:
                raise ValueError(f"{path}: {stored} must be of shape {shapes[name]} to fit config.json, got {shape}")
        tensors = {name: file.get_tensor(stored) for name, stored in names.items()}
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise ValueError(f"{path}: {names[name]} must be float32, bfloat16 or float16, got {tensor.dtype}")
    return tensors


def _stored_names(path: Path) -> list[str]:
    with _open_safetensors(path) as file:
        return list(file.keys())


@contextmanager
def _open_safetensors(path: Path) -> Iterator[Any]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError(f"safetensors {INSTALL}") from error
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} must be a whole safetensors file, and cannot be read ({error}): download it again"
        ) from error


def _read_index(path: Path) -> dict[str, str]:
    shards = _read_json(path).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise ValueError(f"{path}: weight_map must be an object that gives the file of each tensor")
    return shards


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} must be a JSON file, and cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content
