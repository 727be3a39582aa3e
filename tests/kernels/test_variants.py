"""How many kernels a server compiles, whatever sizes its videos have: counted from shapes, nothing is compiled."""

from __future__ import annotations

import os
import random
from collections import defaultdict
from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from benchmarks.offline import Launch, record_call, recorded_launches, specialise
from fastvid_kernels import PruneConfig, warmup
from fastvid_kernels.kernels.limits import MAX_TOKENS_PER_FRAME

MOST_OF_A_KERNEL = 6
MOST = 32
CALLS = 300
RATIOS = (0.05, 0.1, 0.25, 0.27, 0.5)


def random_calls(seed: int, features: bool | None = None) -> Iterator[list[Launch]]:
    """Launches of calls as one model makes them: contiguous bfloat16 of one width, any number and size of frames.

    `features` says whether they give frame features; some do and some do not if it is None.
    """
    generator = random.Random(seed)
    for _ in range(CALLS):
        ratio = generator.choice(RATIOS)
        fewest = next(n for n in range(1, MAX_TOKENS_PER_FRAME) if PruneConfig(ratio).kept_per_frame(n))
        frames = generator.choice([1, generator.randint(1, 64), generator.randint(1, 2048)])
        tokens_per_frame = generator.choice([fewest, generator.randint(fewest, MAX_TOKENS_PER_FRAME)])
        videos = [frames // 3, frames - frames // 3] if frames > 3 and generator.random() < 0.3 else None
        tokens = torch.empty(frames, tokens_per_frame, 3584, dtype=torch.bfloat16, device="meta")
        given = generator.random() < 0.5 if features is None else features
        yield record_call(
            "sm_90", tokens, feature_channels=1152 if given else None, videos=videos, retention_ratio=ratio
        )


def variants(calls: Iterator[list[Launch]]) -> dict[str, set[str]]:
    """By kernel: all that Triton would compile anew."""
    found: dict[str, set[str]] = defaultdict(set)
    for launches in calls:
        for launch in launches:
            found[launch.name].add(repr(specialise(launch, "sm_90")))
    return found


@pytest.mark.parametrize("seed", [1, 2])
def test_videos_of_all_sizes_share_a_few_kernels(seed: int) -> None:
    found = {name: len(kinds) for name, kinds in variants(random_calls(seed)).items()}
    assert len(found) == 8
    assert max(found.values()) <= MOST_OF_A_KERNEL, found
    assert sum(found.values()) <= MOST, found


def test_a_size_that_is_compiled_in_is_noticed() -> None:
    """Were the tokens of a frame specialised, as they were once, hundreds of kernels would be."""
    launches = [one for call in random_calls(3) for one in call if one.name == "gram_kernel"]
    compiled_in = {repr(one.arguments["N"]) for one in launches}
    assert len(compiled_in) > 100
    assert len({repr(specialise(one, "sm_90")) for one in launches}) <= 2


@pytest.mark.parametrize("features", [True, False])
def test_a_warm_up_compiles_all_that_a_model_meets(features: bool) -> None:
    with recorded_launches() as launches:
        warmup("meta", 3584, feature_channels=1152 if features else None, progress=False)
    warm = variants(iter([launches]))
    for name, kinds in variants(random_calls(4, features=None if features else False)).items():
        assert kinds <= warm[name], name


@pytest.mark.runs_kernels
def test_a_warm_up_runs_the_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    assert warmup("cpu", 16, torch.float32, feature_channels=8, retention_ratio=0.05, progress=True) == 4
    assert capsys.readouterr().out == ""


def test_a_warm_up_without_a_gpu_is_refused() -> None:
    with pytest.raises(ValueError, match="tokens must be on a GPU"):
        warmup("cpu", 16)
    with pytest.raises(TypeError, match="float64"):
        warmup("cpu", 16, torch.float64)
    with pytest.raises(ValueError, match="retention_ratio"):
        warmup("cpu", 16, retention_ratio=0.001)
