"""Predicted times of a call's stages, from their bytes and operations and a device's figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from statistics import fmean
from typing import Any

import reference
from benchmarks.inputs.cases import Case
from benchmarks.inputs.videos import preset_video
from benchmarks.model.devices import CACHE_SHARE, COPY_SHARE, GAP_US, HOST_US, RATE_SHARE, TRIP_US, Device
from benchmarks.model.scenario import Scenario
from benchmarks.model.stages import works
from benchmarks.model.work import Work
from fastvid_kernels import PruneConfig

GRAPH = "Triton, graph replay"
EAGER = "Triton, eager launch"
# Seeds of videos, on which their cuts depend: four, as many as the sets of inputs in the benchmarks.
_SEEDS = range(4)


@dataclass(frozen=True)
class Model:
    """A device as the model sees it; `copy_tb_s` is a measured copy bandwidth, TB/s read and written together."""

    device: Device
    copy_tb_s: float | None = None

    @property
    def memory_tb_s(self) -> float:
        """Memory bandwidth that kernels reach, TB/s."""
        return self.copy_tb_s or COPY_SHARE * self.device.memory_tb_s

    @property
    def cache_bytes(self) -> float:
        """Bytes of the last cache before memory."""
        return self.device.cache_mb * 1e6

    def floor_us(self, scenario: Scenario) -> float:
        """Microseconds to read the tokens once and write the output, at `memory_tb_s`."""
        return _us(scenario.floor_bytes, self.memory_tb_s)

    def stage(self, work: Work, dtype: str) -> StageTime:
        """The time of a stage under each of its bounds."""
        device = self.device
        # The last round of blocks may leave multiprocessors idle.
        rounds = -(-work.blocks // device.multiprocessors)
        busy = work.blocks / (rounds * device.multiprocessors) if work.blocks else 1.0
        matrix = device.single_tflops if dtype == "float32" else device.half_tflops
        return StageTime(
            work,
            memory_bytes=work.memory_bytes(self.cache_bytes),
            microseconds={
                "memory": _us(work.memory_bytes(self.cache_bytes), self.memory_tb_s),
                "cache": _us(work.requested_bytes, CACHE_SHARE * device.cache_tb_s * busy),
                "matrix": _us(work.matrix_flops, RATE_SHARE * matrix * busy),
                "vector": _us(work.vector_flops, RATE_SHARE * device.vector_tflops * busy),
                "float64": _us(work.double_flops, RATE_SHARE * device.double_tflops * busy),
                "latency": TRIP_US * work.trips,
            },
        )

    def predict(self, scenario: Scenario) -> Prediction:
        """All stages of a call."""
        return Prediction([self.stage(work, scenario.dtype) for work in works(scenario)], self.floor_us(scenario))


@dataclass(frozen=True)
class StageTime:
    """A stage's work, and the microseconds that each of its bounds would take alone."""

    work: Work
    memory_bytes: float
    microseconds: dict[str, float]

    @property
    def bound(self) -> str:
        """The bound that takes longest."""
        return max(self.microseconds, key=lambda name: self.microseconds[name])

    @property
    def total_us(self) -> float:
        """The bound, and the gaps between launches."""
        return self.microseconds[self.bound] + GAP_US * self.work.launches


@dataclass(frozen=True)
class Prediction:
    """A call: its stages in order, and the lower bound for any implementation."""

    stages: Sequence[StageTime]
    floor_us: float

    @cached_property
    def graph_us(self) -> float:
        """Time when replayed from a CUDA graph: the stages one after the other."""
        return sum(stage.total_us for stage in self.stages)

    @property
    def eager_us(self) -> float:
        """Time when launched from Python: that of the host or the device, whichever is slower."""
        return max(self.graph_us, HOST_US * sum(stage.work.launches for stage in self.stages))


def _us(amount: float, tera_per_second: float) -> float:
    return amount / (tera_per_second * 1e6)


def equal_segments(frames: int, count: int) -> tuple[int, ...]:
    """Lengths of `count` segments, as equal as can be."""
    return tuple(reference.budgets.shares(frames, count))


@lru_cache
def segments_of(kind: str, frames: int, config: PruneConfig, seed: int) -> tuple[int, ...]:
    """Lengths of the segments into which a video of a kind named in `PRESETS` is cut."""
    features = preset_video(kind, frames, 4, 8, seed=seed).frame_features
    cuts = reference.select_cuts(reference.quantised_transitions(features), config.min_segments, config.tau)
    return tuple(end - start for start, end in reference.segments_between(cuts, frames))


def predict_kind(
    model: Model, kind: str, size: tuple[int, int, int], dtype: str, config: PruneConfig
) -> list[Prediction]:
    """Predictions for several videos of a kind; `size` is (frames, tokens of a frame, channels)."""
    frames, tokens_per_frame, channels = size
    return [
        model.predict(
            Scenario(tokens_per_frame, channels, segments_of(kind, frames, config, seed), dtype=dtype, config=config)
        )
        for seed in _SEEDS
    ]


def whole_us(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Microseconds of each of the kernels' arms, the mean over videos."""
    return {
        GRAPH: fmean(one.graph_us for one in predictions),
        EAGER: fmean(one.eager_us for one in predictions),
    }


@dataclass(frozen=True)
class Comparison:
    """A measured median beside the prediction, both in microseconds.

    Attributes:
        case: the call.
        part: an arm, or a stage of one.
        bound: the limit of a stage in the model.
        predicted: the mean over videos of that kind.
        measured: the median.
    """

    case: Case
    part: str
    bound: str
    predicted: float
    measured: float

    @property
    def ratio(self) -> float:
        """Measured over predicted time."""
        return self.measured / self.predicted


def compare(model: Model, report: dict[str, Any]) -> list[Comparison]:
    """A row for each row of the kernels in a report of `make bench`, except ragged batches.

    Raises:
        ValueError: the report is not of a GPU.
    """
    if "gpu" not in report["machine"]:
        raise ValueError("its figures are not a GPU's")
    predicted: dict[Case, list[Prediction]] = {}
    found = []
    for row in report["rows"]:
        case = Case(**row["case"])
        if row["arm"] not in (GRAPH, EAGER) or case.videos > 1:
            continue
        if case not in predicted:
            size = (case.frames, case.tokens_per_frame, case.channels)
            predicted[case] = predict_kind(model, case.video, size, case.dtype, case.config)
        videos, measured = predicted[case], 1e3 * row["milliseconds"]["p50"]
        if row["stage"] is None:
            found.append(Comparison(case, row["arm"], "", whole_us(videos)[row["arm"]], measured))
            continue
        stages = [next(stage for stage in video.stages if stage.work.stage == row["stage"]) for video in videos]
        found.append(
            Comparison(case, row["stage"], stages[0].bound, fmean(stage.total_us for stage in stages), measured)
        )
    return found
