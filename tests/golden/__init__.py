"""Outputs of the published forms of FastVID, with the random tie-break set to zero (SPEC section 8).

They are those of LLaVA-Video, and of the block for Qwen2.5-VL with its hyperparameter `ignore` inactive.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_FOLDER = Path(__file__).parent
_HYPERPARAMETERS = (
    "retention_ratio",
    "min_segments",
    "tau",
    "dtm_ratio",
    "anchor_interval",
    "beta",
    "num_neighbors",
)


@dataclass
class GoldenCase:
    """One video, F frames of N tokens with D channels, and the F*K tokens the published code made of it."""

    name: str
    grid: tuple[int, int]
    """Rows and columns of a frame's token grid, N in all."""
    tokens: Tensor
    """`[F, N, D]` float32."""
    attn: Tensor
    """`[F, N]` float32."""
    frame_features: Tensor
    """`[F, D]` float32."""
    newline: Tensor
    """`[D]` float32, the embedding that ends each row of the grid."""
    hyperparameters: dict[str, Any]
    """Keyword arguments of `prune`."""
    expected_tokens: Tensor
    """`[F*K, D]` float32."""
    expected_indices: Tensor
    """`[F*K]` int64, `frame * N + position`."""
    segment_lengths: list[int]
    grid_positions: Tensor
    """Kept positions in the stream with newline tokens, int64."""
    grid_tokens: Tensor
    """The rows at `grid_positions`, float32."""


def _descriptions() -> dict[str, dict[str, Any]]:
    descriptions: dict[str, dict[str, Any]] = json.loads((_FOLDER / "cases.json").read_text())
    return descriptions


def case_names() -> list[str]:
    """Names of all cases, for `pytest.mark.parametrize`."""
    return list(_descriptions())


@dataclass
class QwenCase:
    """One video without frame features, and the F*K tokens that the published Qwen2.5-VL block made of it."""

    tokens: Tensor
    """`[F, N, D]` float32."""
    attn: Tensor
    """`[F, N]` float32."""
    hyperparameters: dict[str, Any]
    """Keyword arguments of `prune`."""
    expected_tokens: Tensor
    """`[F*K, D]` float32."""
    expected_indices: Tensor
    """`[F*K]` int64, `frame * N + position`."""


QWEN_CASES = ("qwen_wide", "qwen_tall")


def load_qwen_case(name: str) -> QwenCase:
    """The case of that name, one of `QWEN_CASES`."""
    cases = {case["name"]: case for case in json.loads((_FOLDER / "qwen_cases.json").read_text())}
    return QwenCase(hyperparameters=cases[name]["hyperparameters"], **_arrays(name))


def load_case(name: str) -> GoldenCase:
    """The case of that name; arrays stored as float16 come as float32."""
    description = _descriptions()[name]
    arrays = _arrays(name)
    rows, columns = description["grid"]
    return GoldenCase(
        name=name,
        grid=(rows, columns),
        hyperparameters={key: description[key] for key in _HYPERPARAMETERS},
        segment_lengths=arrays.pop("segment_lengths").tolist(),
        **arrays,
    )


def _arrays(name: str) -> dict[str, Any]:
    with np.load(_FOLDER / f"{name}.npz") as stored:
        arrays = {key: torch.from_numpy(stored[key]) for key in stored.files}
    return {key: array.float() if array.dtype == torch.float16 else array for key, array in arrays.items()}
