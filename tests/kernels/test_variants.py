"""How many kernels a server compiles, whatever sizes its videos have: counted from shapes, nothing is compiled."""

from __future__ import annotations

import os
import random
from collections import defaultdict
from collections.abc import Iterator
from unittest import mock

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from benchmarks.compiled.offline import Launch, record_call, recorded_launches, specialise
from benchmarks.compiled.targets import TARGETS
from fastvid_kernels import PruneConfig, warmup
from fastvid_kernels.kernels import pipeline
from fastvid_kernels.kernels.gram import gram_kernel
from fastvid_kernels.kernels.limits import MAX_TOKENS_PER_FRAME

# Kernels differ with and without features, for one video and several, and by three tiles of a frame.
VARIANTS = {"frame": 2, "plan": 4, "gram": 1, "density": 3, "delta": 3, "select": 3, "assign": 1, "emit": 1}
OF_BACKWARD = {name: count for name, count in VARIANTS.items() if name != "emit"} | {"gradient": 1}
CALLS = 300
RATIOS = (0.05, 0.1, 0.25, 0.27, 0.5)


def random_calls(
    seed: int, features: bool | None = None, backward: bool = False, **hyperparameters: float
) -> Iterator[list[Launch]]:
    """Launches of calls as one model makes them: contiguous bfloat16 of one width, any number and size of frames.

    `backward` asks for their backward passes instead.
    `features` says whether they give frame features; None means that some do. If no retention ratio is given, each call
    draws one of `RATIOS`. Attention is float32, as the adapters give it.
    """
    generator = random.Random(seed)
    for _ in range(CALLS):
        ratio = hyperparameters.get("retention_ratio", generator.choice(RATIOS))
        fewest = next(n for n in range(1, MAX_TOKENS_PER_FRAME) if PruneConfig(ratio).kept_per_frame(n))
        frames = generator.choice([1, generator.randint(1, 64), generator.randint(1, 2048)])
        tokens_per_frame = generator.choice([fewest, generator.randint(fewest, MAX_TOKENS_PER_FRAME)])
        videos = [frames // 3, frames - frames // 3] if frames > 3 and generator.random() < 0.3 else None
        tokens = torch.empty(frames, tokens_per_frame, 3584, dtype=torch.bfloat16, device="meta")
        given = generator.random() < 0.5 if features is None else features
        yield record_call(
            "sm_90",
            tokens,
            attn=torch.empty(frames, tokens_per_frame, device="meta"),
            feature_channels=1152 if given else None,
            videos=videos,
            backward=backward,
            **{**hyperparameters, "retention_ratio": ratio},
        )


def variants(calls: Iterator[list[Launch]]) -> dict[str, set[str]]:
    """For each kernel, the specialisations that Triton would compile."""
    found: dict[str, set[str]] = defaultdict(set)
    for launches in calls:
        for launch in launches:
            found[launch.name].add(repr(specialise(launch, "sm_90")))
    return found


def counted(calls: Iterator[list[Launch]]) -> dict[str, int]:
    return {name.removesuffix("_kernel"): len(kinds) for name, kinds in variants(calls).items()}


@pytest.mark.parametrize("seed", [1, 2])
def test_videos_of_all_sizes_share_a_few_kernels(seed: int) -> None:
    assert counted(random_calls(seed)) == VARIANTS


def test_a_backward_pass_adds_one_kernel() -> None:
    assert counted(random_calls(1, backward=True)) == OF_BACKWARD
    forward, backward = variants(random_calls(1)), variants(random_calls(1, backward=True))
    for name in forward.keys() & backward.keys():
        assert forward[name] == backward[name], name


def test_a_size_that_is_compiled_in_is_noticed() -> None:
    """If Triton specialised on N again, as it once did, N = 1 and multiples of 16 would have kernels of their own."""
    (n,) = (one for one in gram_kernel.params if one.name == "N")
    with mock.patch.object(n, "do_not_specialize", False):
        assert counted(random_calls(1))["gram"] > VARIANTS["gram"]


HYPERPARAMETERS = [{}, {"retention_ratio": 0.27}, {"retention_ratio": 0.02}, {"dtm_ratio": 0.05}, {"dtm_ratio": 0.0}]


@pytest.mark.parametrize("hyperparameters", HYPERPARAMETERS, ids=str)
@pytest.mark.parametrize("features", [True, False], ids=["features", "mean features"])
def test_a_warm_up_compiles_all_that_a_model_meets(features: bool, hyperparameters: dict[str, float]) -> None:
    given = {"feature_channels": 1152 if features else None, "progress": False, **hyperparameters}
    for backward in (False, True):
        with (
            mock.patch.object(pipeline, "shared_bytes_of", return_value=TARGETS["sm_90"].shared_bytes),
            recorded_launches() as launches,
        ):
            warmup("meta", 3584, backward=backward, **given)
        warm = variants(iter([launches]))
        assert ("gradient_kernel" in warm) == backward, "who only serves does not wait for it"
        met = variants(random_calls(4, features=None if features else False, backward=backward, **hyperparameters))
        for name, kinds in met.items():
            assert kinds <= warm[name], name


def test_a_warm_up_takes_what_a_config_may_hold() -> None:
    with recorded_launches() as launches:
        count = warmup("meta", 64, config=PruneConfig(0.001, num_neighbors=np.int64(4)), progress=False)
    assert count == 2, "only frames of 1,024 tokens keep any"
    for launch in launches:
        specialise(launch, "sm_90")


@pytest.mark.runs_kernels
def test_a_warm_up_runs_the_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    given = {"feature_channels": 8, "retention_ratio": 0.05, "progress": True}
    assert warmup("cpu", 16, torch.float32, backward=True, **given) == 4
    assert capsys.readouterr().out == ""


def test_a_warm_up_without_a_gpu_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^device must be a GPU, got cpu"):
        warmup("cpu", 16)
    with pytest.raises(TypeError, match="float64"):
        warmup("cpu", 16, torch.float64)
    with pytest.raises(ValueError, match="retention_ratio must keep"):
        warmup("cpu", 16, retention_ratio=0.0001)


@pytest.mark.parametrize("dtm_ratio", [0.0, 0.4])
@pytest.mark.parametrize("frames", [1, 8, 10])
def test_addresses_lie_in_the_scratch(frames: int, dtm_ratio: float) -> None:
    """A driver refuses an address outside of any allocation, even one that no kernel uses."""
    tokens = torch.zeros(frames, 64, 16)
    config = PruneConfig(dtm_ratio=dtm_ratio)
    call = pipeline.prepare(tokens, torch.zeros(frames, 64), None, None, config)
    base, size = call.workspace._bytes.data_ptr(), call.workspace.size
    addresses = call.workspace.addresses()
    assert all(address == 0 or base <= address < base + size for address in addresses.values())
    assert (addresses["gram"] == 0) == (not call.shapes.has_anchors)
    for step in call.recipe.steps:
        for name in set(step.arrays.values()) & set(addresses):
            assert addresses[name] or not call.shapes.has_anchors
