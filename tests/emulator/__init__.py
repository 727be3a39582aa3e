"""Runs kernels that Triton compiles for NVIDIA GPUs on a CPU: a PTX interpreter that finds errors which no GPU reports.

`library` builds the interpreter (`ptx/`, C++) and calls it; `emulator` intercepts `kernel[grid](...)`; `guarded` lays
out the scratch of a call with gaps between its arrays; `lane` is the pytest plugin. README.md says what is modelled,
what is reported, and what is not.
"""

from tests.emulator.emulator import Emulator as Emulator
from tests.emulator.library import Approximation as Approximation
from tests.emulator.library import Options as Options
from tests.emulator.library import Order as Order
from tests.emulator.library import TensorCores as TensorCores
