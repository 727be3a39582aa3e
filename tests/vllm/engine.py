"""vLLM engines in this process, one at a time, and their answers."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}
"""To be set before vLLM is imported."""
NEW = 6
# Float32 sums in another order were seen to differ by 1e-6. A wrong position gives a difference of at least 1e-2.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Request:
    """A prompt, and what its placeholders stand for.

    Attributes:
        ids: token ids, with one placeholder for each video or image.
        videos: frames `[F, H, W, 3]`, uint8, with the metadata that vLLM requires, if any.
        images: `[H, W, 3]`, uint8.
        text: the same prompt as text, which is sent instead of the ids.
    """

    ids: list[int]
    videos: tuple[Any, ...] = ()
    images: tuple[Any, ...] = ()
    text: str | None = None

    def for_vllm(self) -> dict[str, Any]:
        data: dict[str, Any] = {}
        if self.videos:
            data["video"] = list(self.videos)
        if self.images:
            data["image"] = list(self.images)
        prompt = {"prompt_token_ids": self.ids} if self.text is None else {"prompt": self.text}
        return prompt | ({"multi_modal_data": data} if data else {})


@dataclass(frozen=True)
class Answer:
    """Of one request: length of its served prompt, tokens, and log-probabilities of the likeliest five at each."""

    prompt: int
    ids: list[int]
    log_probabilities: list[dict[int, float]]
    cached: int

    def worst(self, ids: Sequence[int], logits: torch.Tensor) -> float:
        """The largest difference of log-probabilities from those of `logits [T, V]`; the tokens must be `ids`."""
        assert self.ids == list(ids)
        expected = logits.double().log_softmax(-1)
        differences = [
            abs(value - float(expected[step, token]))
            for step, likeliest in enumerate(self.log_probabilities)
            for token, value in likeliest.items()
        ]
        return max(differences)


class Engine:
    """A running engine."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm

    @property
    def model(self) -> Any:
        """vLLM's model, which runs in this process."""
        return self.llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.get_model()

    def answer(self, *requests: Request, new: int = NEW, adapters: Sequence[Path] = ()) -> list[Answer]:
        """Answer all requests at once, each with the LoRA adapter in a directory, if any are given."""
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        numbers = {one: number for number, one in enumerate(sorted(set(adapters)), 1)}
        outputs = self.llm.generate(
            [one.for_vllm() for one in requests],
            SamplingParams(max_tokens=new, temperature=0, logprobs=5, ignore_eos=True),
            use_tqdm=False,
            lora_request=[LoRARequest(one.name, numbers[one], str(one)) for one in adapters] or None,
        )
        return [
            Answer(
                len(one.prompt_token_ids),
                list(one.outputs[0].token_ids),
                [{token: entry.logprob for token, entry in step.items()} for step in one.outputs[0].logprobs],
                one.num_cached_tokens or 0,
            )
            for one in outputs
        ]

    def watch(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Two lists that fill as videos are pruned and the model runs: kept indices, and positions."""
        kept: list[torch.Tensor] = []
        given: list[torch.Tensor] = []
        prune = self.model.pruner

        def watched(video: Any) -> Any:
            pruned = prune(video)
            kept.append(pruned.indices)
            return pruned

        self.model.pruner = watched
        self.model.register_forward_pre_hook(
            lambda _, args, inputs: given.append(inputs["positions"].clone()), with_kwargs=True
        )
        return kept, given

    def forget(self) -> None:
        """Empty the prefix cache."""
        assert self.llm.reset_prefix_cache()


@contextlib.contextmanager
def running(checkpoint: Path, **settings: Any) -> Iterator[Engine]:
    """An engine that is shut down afterwards."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    defaults: dict[str, Any] = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 1024,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 2048,
        "block_size": 32,
        "disable_log_stats": True,
    }
    llm = LLM(str(checkpoint), **(defaults | settings))
    try:
        yield Engine(llm)
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


def film(seed: int, frames: int, height: int, width: int) -> Any:
    """Two shots that drift, uint8 `[F, H, W, 3]`."""
    generator = np.random.default_rng(seed)
    shots = generator.integers(0, 256, (2, height, width, 3))
    shot = (np.arange(frames) >= frames // 2).astype(int)
    drift = generator.integers(-40, 41, (frames, height, width, 3))
    return (shots[shot] + drift).clip(0, 255).astype(np.uint8)
