"""The cost of computing attention scores from a vision tower's last block, relative to that block.

    python -m benchmarks.in_models.score_cost [--patches 1024] [--frames 8] [--device cuda]

The block has the size of Qwen2.5-VL's (1,280 channels, 16 heads), in bfloat16 on a GPU and float32 on a CPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils import benchmark

from fastvid_kernels.vision import TOWER_ATTENTION, rotated

_CHANNELS, _HEADS, _HIDDEN, _PATCHES_A_TOKEN = 1280, 16, 3420, 4


class Block(nn.Module):
    """A block of the tower that attends to whole frames, without its norms."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(_CHANNELS, 3 * _CHANNELS)
        self.proj = nn.Linear(_CHANNELS, _CHANNELS)
        self.gate, self.up = (nn.Linear(_CHANNELS, _HIDDEN) for _ in range(2))
        self.down = nn.Linear(_HIDDEN, _CHANNELS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Patches `[F, P, C]` to patches `[F, P, C]`."""
        qkv = self.qkv(x).unflatten(2, (3, _HEADS, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.proj(nn.functional.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.silu(self.gate(x)) * self.up(x))


@torch.inference_mode()
def seconds(frames: int, patches: int, device: torch.device, least: float = 2.0) -> dict[str, float]:
    """Median times by name; each is measured for `least` seconds."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    block = Block().to(device, dtype)
    x = torch.randn(frames, patches, _CHANNELS, device=device, dtype=dtype)
    qkv = block.qkv(x).unflatten(2, (3, _HEADS, -1))
    angles = torch.rand(frames, patches, _CHANNELS // _HEADS, device=device)

    def score(name: str) -> torch.Tensor:
        queries, keys = (rotated(qkv[:, :, number], angles.cos(), angles.sin()) for number in (0, 1))
        return TOWER_ATTENTION[name](queries, keys, _PATCHES_A_TOKEN)

    runs = {"one block": lambda: block(x), "its qkv product": lambda: block.qkv(x)}
    runs |= {name: lambda name=name: score(name) for name in TOWER_ATTENTION}
    return {
        name: benchmark.Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
        .blocked_autorange(min_run_time=least)
        .median
        for name, run in runs.items()
    }


def as_table(measured: dict[str, float], title: str) -> Table:
    """Milliseconds, and shares of a block."""
    table = Table(title=title)
    table.add_column("part")
    for name in ("ms", "of one block"):
        table.add_column(name, justify="right")
    for name, one in measured.items():
        table.add_row(name, f"{1e3 * one:.2f}", f"{one / measured['one block']:.3f}")
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patches", type=int, default=1024)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    title = f"{options.frames} frames of {options.patches} patches, {name}, torch {torch.__version__}"
    Console(width=100).print(as_table(seconds(options.frames, options.patches, device), title))


if __name__ == "__main__":
    main()
