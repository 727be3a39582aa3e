"""`make bench-vllm`: requests a second and time to the first token, served by vLLM, pruned and not, side by side.

The model is a small LLaVA-OneVision with random weights and about the proportions of the 7B model: for each frame, its
language model does 3.4 times the multiplications of its tower and projector (4.2 in the 7B model). Videos are new in
every round, so that no cache helps, and all requests of a round arrive at the same moment.
An arm is an engine in this process; the arms take turns, round by round. Each computes in one thread: with more, other
load on the machine would delay all threads at every barrier.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.measured.machine import describe_machine
from tests.adapters import tiny
from tests.vllm import checkpoints, engine

FRAMES = 32
WORDS = 24
NEW = 16
TOGETHER = {1: 9, 8: 5, 32: 3}
"""By number of simultaneous requests, the number of rounds that are measured."""
PRUNED = {"video_pruning_rate": 0.9, "video_pruning_method": "fastvid"}
ARMS: dict[str, dict[str, Any]] = {
    "unpruned": {},
    "pruned": PRUNED,
    # With the default, a step takes so many short prompts that all their videos are encoded before any first token.
    "pruned, steps of 512": PRUNED | {"max_num_batched_tokens": 512},
}
"""Arguments of vLLM; by default a step takes 2,048 tokens."""
VISION = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 3, "num_attention_heads": 4}
TEXT = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
}


@dataclass(frozen=True)
class Round:
    """Times of some simultaneous requests.

    Attributes:
        seconds: until the last request had its last token.
        first_tokens: seconds until each request had its first token, in no particular order.
        in_encoder: seconds spent on the videos, in the tower and in pruning.
        prompt: tokens of a request's prompt, as the language model receives it.
    """

    seconds: float
    first_tokens: list[float]
    in_encoder: float
    prompt: int


@dataclass(frozen=True)
class Row:
    """Results of an arm with some simultaneous requests.

    Attributes:
        arm: a key of `ARMS`.
        together: number of simultaneous requests.
        rounds: number of rounds measured.
        requests_a_second: median over the rounds.
        slowest, fastest: requests a second of the slowest and the fastest round.
        first_token: seconds until a request's first token, median over all requests of all rounds.
        soonest: seconds until the first token of any request, median over the rounds.
        encoder: seconds per request in the tower and in pruning, median over the rounds.
        prompt: tokens of a prompt.
    """

    arm: str
    together: int
    rounds: int
    requests_a_second: float
    slowest: float
    fastest: float
    first_token: float
    soonest: float
    encoder: float
    prompt: int

    @classmethod
    def of(cls, arm: str, together: int, rounds: list[Round]) -> Row:
        """The results of some rounds."""
        rates = [together / one.seconds for one in rounds]
        return cls(
            arm=arm,
            together=together,
            rounds=len(rounds),
            requests_a_second=statistics.median(rates),
            slowest=min(rates),
            fastest=max(rates),
            first_token=statistics.median(first for one in rounds for first in one.first_tokens),
            soonest=statistics.median(min(one.first_tokens) for one in rounds),
            encoder=statistics.median(one.in_encoder / together for one in rounds),
            prompt=rounds[0].prompt,
        )


class Arm:
    """An engine whose time on videos is counted.

    Args:
        running: the engine, in this process.
        request: maps a number to a prompt; no two numbers give the same.
    """

    def __init__(self, running: engine.Engine, request: Callable[[int], Any]) -> None:
        self._llm = running.llm
        self._request = request
        self._in_encoder = 0.0
        self._watch(running.model)

    def _watch(self, model: Any) -> None:
        embed = model.embed_multimodal

        def watched(**inputs: Any) -> Any:
            start = time.perf_counter()
            try:
                return embed(**inputs)
            finally:
                self._in_encoder += time.perf_counter() - start

        model.embed_multimodal = watched

    def run(self, first: int, together: int) -> Round:
        """Send requests `first`, `first + 1`, ... at once, with greedy answers of `NEW` tokens."""
        from vllm import SamplingParams

        prompts = [self._request(number) for number in range(first, first + together)]
        greedy = SamplingParams(max_tokens=NEW, temperature=0, ignore_eos=True)
        self._in_encoder = 0.0
        # The clock by which the engine records first tokens.
        start = time.monotonic()
        outputs = self._llm.generate(prompts, greedy, use_tqdm=False)
        seconds = time.monotonic() - start
        first_tokens = [one.metrics.first_token_ts - start for one in outputs]
        return Round(seconds, first_tokens, self._in_encoder, len(outputs[0].prompt_token_ids))


@contextlib.contextmanager
def arms() -> Iterator[dict[str, Arm]]:
    """An engine for each arm."""

    def request(number: int) -> dict[str, Any]:
        words = [1 + one % 99 for one in tiny.words(number, WORDS)]
        video = engine.film(number, FRAMES, tiny.VISION["image_size"], tiny.VISION["image_size"])
        return engine.Request([*words[:8], tiny.VIDEO, *words[8:]], (video,)).for_vllm()

    with tempfile.TemporaryDirectory() as made, contextlib.ExitStack() as running:
        root = Path(made)
        checkpoints.save_llava(checkpoints.llava(text=TEXT, vision=VISION), root / "model")
        checkpoints.save_siglip(root / "siglip", **VISION)
        found = {}
        settings = {
            "max_num_seqs": max(TOGETHER),
            "limit_mm_per_prompt": {"video": 4, "image": 4},
            "mm_processor_cache_gb": 0,
            "enable_prefix_caching": False,
            "disable_log_stats": False,
            "additional_config": {"fastvid": {"siglip": str(root / "siglip")}},
        }
        for name, own in ARMS.items():
            served = running.enter_context(engine.running(root / "model", **(settings | own)))
            found[name] = Arm(served, request)
        yield found


def measure() -> list[Row]:
    """All arms, after one round of each kind that does not count."""
    rows = []
    number = 0
    with arms() as found:
        for together, count in TOGETHER.items():
            rounds: dict[str, list[Round]] = {name: [] for name in found}
            for _ in range(1 + count):
                for name, arm in found.items():
                    rounds[name].append(arm.run(number, together))
                number += together
            rows += [Row.of(name, together, several[1:]) for name, several in rounds.items()]
            print(table(rows[-len(found) :]), flush=True)
    return rows


def table(rows: list[Row]) -> str:
    """A readable table; ratios are to the first arm with as many simultaneous requests."""
    lines = [
        f"{'at once':>7}  {'arm':<21}{'prompt':>6} {'rounds':>6} {'requests/s (from - to)':>23} {'ratio':>6} "
        f"{'first token':>11} {'ratio':>6} {'soonest':>8} {'video, each':>11}"
    ]
    for row in rows:
        base = next(one for one in rows if one.together == row.together)
        spread = f"{row.requests_a_second:.2f} ({row.slowest:.2f} - {row.fastest:.2f})"
        lines.append(
            f"{row.together:>7}  {row.arm:<21}{row.prompt:>6} {row.rounds:>6} {spread:>23} "
            f"{row.requests_a_second / base.requests_a_second:>6.2f} {row.first_token:>9.2f} s "
            f"{row.first_token / base.first_token:>6.2f} {row.soonest:>6.2f} s {row.encoder:>9.2f} s"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write OUTPUT.txt and OUTPUT.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/serving"))
    output = parser.parse_args().output
    # Before vLLM is imported, and before this process loads the machine.
    os.environ |= engine.ENVIRONMENT | {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    torch.set_num_threads(1)
    machine = describe_machine()
    import transformers
    import vllm

    machine |= {"vllm": vllm.__version__, "transformers": transformers.__version__}
    work = {"frames": FRAMES, "words": WORDS, "new_tokens": NEW, "vision": VISION, "text": TEXT, "dtype": "float32"}
    start = time.perf_counter()
    rows = measure()
    machine["seconds"] = round(time.perf_counter() - start)
    text = "\n".join(
        [
            ", ".join(f"{name} {value}" for name, value in machine.items()),
            ", ".join(f"{name} {value}" for name, value in work.items()),
            table(rows),
        ]
    )
    print(text)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".txt").write_text(text + "\n")
    record = {"machine": machine, "work": work, "rows": [asdict(row) for row in rows]}
    output.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
