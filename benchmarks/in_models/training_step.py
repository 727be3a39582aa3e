"""Time and peak memory of a training step with pruning and without, on the CPU.

    python -m benchmarks.in_models.training_step

A small LLaVA-OneVision with random weights gets one video of 32 frames, whose 1,568 tokens are pruned to a tenth. Each
arm is a process of its own, since the peak memory of a process never falls; the memory in use before the first step
(weights, libraries) is subtracted.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import torch

FRAMES = 32
TOKENS_PER_FRAME = 49
VIDEO = 900
STEPS = 3
ARMS = {"without pruning": None, "pruned to 10 %": 0.10}


def small_model() -> Any:
    """2 vision layers of 128 channels, 8 decoder layers of 512."""
    import transformers

    config = transformers.LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 112,
            "patch_size": 8,
            "vision_use_head": False,
        },
        text_config={
            "model_type": "qwen2",
            "hidden_size": 512,
            "intermediate_size": 1536,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "vocab_size": 1000,
            "max_position_embeddings": 4096,
            "pad_token_id": 0,
        },
        image_token_index=VIDEO + 1,
        video_token_index=VIDEO,
        vision_feature_layer=-1,
        image_grid_pinpoints=[[112, 112]],
    )
    torch.manual_seed(0)
    return transformers.LlavaOnevisionForConditionalGeneration(config).train()


def peak_megabytes() -> float:
    """Peak memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_arm(retention_ratio: float | None) -> str:
    """Median seconds and peak megabytes of a step, forward, backward and SGD."""
    from fastvid_kernels import apply_fastvid

    model = small_model()
    if retention_ratio is not None:
        apply_fastvid(model, attention="norm", retention_ratio=retention_ratio)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    words = torch.arange(1, 33)
    ids = torch.cat([words, torch.full((FRAMES * TOKENS_PER_FRAME + 1,), VIDEO), words])[None]
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values_videos": torch.randn(1, FRAMES, 3, 112, 112),
        "labels": ids.masked_fill(ids == VIDEO, -100),
    }
    before = peak_megabytes()
    seconds = []
    for _ in range(STEPS):
        start = time.perf_counter()
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return f"{statistics.median(seconds):.2f} s a step, {peak_megabytes() - before:.0f} MB above the weights"


def main() -> None:
    """Run the arm named on the command line, or every arm in a process of its own."""
    if len(sys.argv) > 1:
        print(run_arm(ARMS[sys.argv[1]]))
        return
    for arm in ARMS:
        command = [sys.executable, "-m", "benchmarks.in_models.training_step", arm]
        print(f"{arm}: {subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()}")


if __name__ == "__main__":
    main()
