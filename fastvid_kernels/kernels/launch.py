"""What the launches of a call share: sizes, tiles, scratch, common arguments. Nothing here looks at data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import triton
from torch import Tensor

from fastvid_kernels.config import PruneConfig

_ALIGNMENT = 16
_ROW_ALIGNMENT = 8
# Beyond this many tokens a frame, the Gram matrices of all frames at once would outgrow a fraction of the tokens.
_ONE_CHUNK_TOKENS = 256
_GRAM_SHARE = 8
# What tokens join is kept for so many of a segment's anchor frames at once as fit a fraction of the tokens, or this.
_NEAREST_SHARE = 8
_NEAREST_BYTES = 1 << 26
# How every kernel is compiled. Products and sums are never fused: what is written is what is computed, whatever a
# compiler's default is (on in Triton 3.6, and Triton 3.10 turns it round).
OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": False}
# Elements of a tile of distances: 32 registers a thread.
_CANDIDATE_TILE = 4096


@dataclass(frozen=True)
class Shapes:
    """Sizes of a call, and the sizes of its tiles.

    Tiles, splits and so the order of every sum follow from N, D and the hyperparameters alone, so that a video gives
    the same bits in any company. Chunks bound the scratch, and change no sum.
    """

    frames: int
    tokens_per_frame: int
    channels: int
    kept_per_frame: int
    slots: int
    ordinals: int
    ordinals_per_chunk: int
    feature_splits: int
    gram_splits: int
    frames_per_chunk: int

    @property
    def block_n(self) -> int:
        """A tile that holds all tokens of a frame."""
        return max(16, next_power_of_2(self.tokens_per_frame))

    @property
    def candidate_rows(self) -> int:
        """Rows of a tile that holds all distances of some tokens."""
        return max(1, min(16, _CANDIDATE_TILE // self.block_n))

    @property
    def padded(self) -> int:
        """Row length of per-token scratch: a multiple of 8, so that rows load in vectors of 16 bytes."""
        return _round_up(self.tokens_per_frame, _ROW_ALIGNMENT)

    @property
    def has_anchors(self) -> bool:
        """Whether any video of these sizes can have anchors."""
        return self.slots > 0


def plan_shapes(tokens: Tensor, feature_channels: int, config: PruneConfig) -> Shapes:
    """Sizes for tokens `[F, N, D]`; `feature_channels` is G, or D if the mean token is the feature."""
    frames, n, dim = tokens.shape
    kept = config.kept_per_frame(n)
    interval = min(config.anchor_interval, frames)
    # A segment of L frames has at least L / p anchor frames, which share at most K * L * d anchors.
    slots = min(n - kept, config.context_share(kept * interval) + 1)
    if config.context_share(kept * frames) == 0:
        slots = 0
    gram_splits = 2 if dim >= 1024 else 1
    token_bytes = tokens.element_size() * n * dim * frames
    frames_per_chunk = frames
    if n > _ONE_CHUNK_TOKENS and slots > 0:
        gram_bytes = gram_splits * _round_up(n, _ROW_ALIGNMENT) ** 2 * 4
        frames_per_chunk = min(frames, max(1, token_bytes // _GRAM_SHARE // gram_bytes))
    ordinals = ordinals_per_chunk = -(-frames // interval)
    if slots > 0:
        nearest_bytes = max(token_bytes // _NEAREST_SHARE, _NEAREST_BYTES)
        ordinals_per_chunk = min(ordinals, max(1, nearest_bytes // (2 * frames * _round_up(n, _ROW_ALIGNMENT))))
    return Shapes(
        frames=frames,
        tokens_per_frame=n,
        channels=dim,
        kept_per_frame=kept,
        slots=slots,
        ordinals=ordinals,
        ordinals_per_chunk=ordinals_per_chunk,
        feature_splits=min(32, -(-feature_channels // 128)),
        gram_splits=gram_splits,
        frames_per_chunk=frames_per_chunk,
    )


class Workspace:
    """All scratch of a call in one allocation, handed out by name."""

    def __init__(self, shapes: Shapes, device: torch.device) -> None:
        frames, padded, slots = shapes.frames, shapes.padded, max(shapes.slots, 1)
        self._layout: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
            "partial": (torch.float64, (frames, shapes.feature_splits, 3)),
            "packed": (torch.int64, (frames,)),
            "segment_first": (torch.int32, (frames,)),
            "segment_id": (torch.int32, (frames,)),
            "segment_start": (torch.int32, (frames,)),
            "segment_end": (torch.int32, (frames,)),
            "rank": (torch.int16, (frames, padded)),
            "state": (torch.int16, (frames, padded)),
            "anchor": (torch.int32, (frames, slots)),
            "anchor_row": (torch.int32, (frames, slots)),
            "inverse_norm": (torch.float32, (frames, slots)),
            "count": (torch.int32, (frames, slots)),
        }
        if shapes.has_anchors:
            self._layout |= {
                "gram": (torch.float32, (shapes.frames_per_chunk, shapes.gram_splits, padded, padded)),
                "s": (torch.float32, (frames, padded)),
                "key": (torch.int32, (frames, padded)),
                "nearest": (torch.int16, (frames, shapes.ordinals_per_chunk, padded)),
            }
        self._offsets = {}
        size = 0
        for name, (dtype, shape) in self._layout.items():
            self._offsets[name] = size
            size += _round_up(math.prod(shape) * dtype.itemsize, _ALIGNMENT)
        self._bytes = torch.empty(size, dtype=torch.uint8, device=device)

    @property
    def size(self) -> int:
        """Bytes in all."""
        return len(self._bytes)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._layout:
            # A launch without anchors never reads what only anchors need.
            return self._bytes
        dtype, shape = self._layout[name]
        first = self._offsets[name]
        return self._bytes[first : first + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)


@dataclass(frozen=True)
class Call:
    """The arguments of a call, its sizes, scratch and outputs; checked, and all on one device."""

    tokens: Tensor
    attn: Tensor
    frame_features: Tensor | None
    cu_frames: Tensor | None
    config: PruneConfig
    shapes: Shapes
    workspace: Workspace
    output: Tensor
    indices: Tensor

    @cached_property
    def strides(self) -> dict[str, int]:
        """Of the tokens."""
        return {f"stride_{axis}": stride for axis, stride in zip("tnd", self.tokens.stride(), strict=True)}

    @cached_property
    def plan(self) -> dict[str, Any]:
        """Arguments from which a kernel knows a frame's segment and budget."""
        return {
            "segment_start_ptr": self.workspace["segment_start"],
            "segment_end_ptr": self.workspace["segment_end"],
            "N": self.shapes.tokens_per_frame,
            "K": self.shapes.kept_per_frame,
            "context_millionths": self.config.dtm_millionths,
            "interval": min(self.config.anchor_interval, self.shapes.frames),
        }

    @cached_property
    def arithmetic(self) -> dict[str, Any]:
        """How matrix products are computed: never in TF32, and as float32 where the interpreter knows no bfloat16."""
        interpreted = triton.knobs.runtime.interpret
        three_tf32 = self.tokens.dtype == torch.float32 and torch.version.hip is None and not interpreted
        return {
            "PRECISION": "tf32x3" if three_tf32 else "ieee",
            "UPCAST": interpreted and self.tokens.dtype == torch.bfloat16,
        }

    @property
    def depth(self) -> int:
        """Channels of a product's tile: 128 bytes."""
        return 128 // self.tokens.element_size()

    @property
    def stages(self) -> int:
        """Tiles in flight: AMD's shared memory holds two."""
        return 3 if torch.version.hip is None else 2


def next_power_of_2(size: int) -> int:
    """The smallest power of 2 that is at least `size`."""
    return 1 << max(0, size - 1).bit_length()


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
