"""Runs what Triton compiles for NVIDIA's GPUs on a CPU: an interpreter of PTX that checks what no GPU tells.

`library` builds the interpreter (`ptx/`, C++) and speaks to it; `emulator` takes over `kernel[grid](...)`; `guarded`
lays the scratch of a call so that no array touches another; `lane` is what pytest needs of it. README.md says what is
modelled, what is reported, and what is not.
"""

from tests.emulator.emulator import Emulator as Emulator
from tests.emulator.library import Approximation as Approximation
from tests.emulator.library import Options as Options
from tests.emulator.library import Order as Order
from tests.emulator.library import TensorCores as TensorCores
