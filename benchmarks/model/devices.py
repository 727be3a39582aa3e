"""GPUs' peak figures from their vendors, and the shares of them that kernels are assumed to reach."""

from __future__ import annotations

from dataclasses import dataclass

# Assumptions of the model, not from data sheets.
# Share of the memory's peak bandwidth that a copy reaches, unless a measured copy bandwidth is given.
COPY_SHARE = 0.9
# Shares of the arithmetic peak and of the cache's bandwidth that tiles of these sizes reach.
RATE_SHARE = 0.5
CACHE_SHARE = 0.8
# Microseconds from a load's issue to its use, averaged over cache hits and misses.
TRIP_US = 0.5
# Microseconds between two kernels in a CUDA graph, and the host's time for a launch from Python.
GAP_US = 2.0
HOST_US = 13.0


@dataclass(frozen=True)
class Device:
    """Peak figures, dense.

    Attributes:
        name: the vendor's name.
        memory_tb_s: bandwidth of the memory, TB/s.
        cache_mb: last cache before the memory, MB.
        cache_tb_s: its bandwidth, TB/s.
        multiprocessors: NVIDIA's multiprocessors or AMD's compute units.
        half_tflops: matrix products of bfloat16 and float16.
        single_tflops: matrix products of float32 as the kernels compute them: three TF32 products each on NVIDIA.
        vector_tflops: float32 without matrix units.
        double_tflops: float64 without matrix units.
    """

    name: str
    memory_tb_s: float
    cache_mb: float
    cache_tb_s: float
    multiprocessors: int
    half_tflops: float
    single_tflops: float
    vector_tflops: float
    double_tflops: float


# NVIDIA: data sheets "A100 80GB SXM", "H100 SXM5", "H200 SXM", "HGX B200" (an eighth of the board; sparse figures
# halved); caches and multiprocessors from the architectures' white papers. The bandwidth of L2 is the A100 white
# paper's 5,120 bytes a clock, of both A100 and, for want of a published figure, H100, H200 and B200.
# AMD: data sheet "Instinct MI300X"; its last cache is the Infinity Cache.
DEVICES = {
    "a100": Device("A100 80GB SXM", 2.04, 40, 7.2, 108, 312, 156 / 3, 19.5, 9.7),
    "h100": Device("H100 SXM", 3.35, 50, 9.0, 132, 989, 494.7 / 3, 67, 34),
    "h200": Device("H200 SXM", 4.8, 50, 9.0, 132, 989, 494.7 / 3, 67, 34),
    "b200": Device("B200 SXM", 8.0, 126, 9.5, 148, 2250, 1125 / 3, 75, 37),
    "mi300x": Device("Instinct MI300X", 5.3, 256, 17.2, 304, 1307.4, 163.4, 163.4, 81.7),
}
