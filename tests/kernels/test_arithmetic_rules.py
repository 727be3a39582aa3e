"""What no kernel may leave to a compiler: fusing products, rounding roots and quotients, telling what is finite.

Checked in the kernels' source, and in the code that Triton compiles it to for NVIDIA's and AMD's GPUs.
"""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter replaces the compiler", allow_module_level=True)

import triton
import triton.language as tl

import fastvid_kernels.kernels
from benchmarks.compiled.offline import Launch, compile_for
from benchmarks.compiled.situations import CORE, Situation

KERNELS = Path(fastvid_kernels.kernels.__file__).parent
SITUATIONS = [CORE[0], Situation(64, 169, dtype="fp32", features=False), Situation(32, 196, dtype="fp16")]
# The logarithm is libdevice's, and has fused products by its own design.
HAS_LOGARITHM = "delta_kernel"
# Its quotients are rounded to the tokens' dtype, and never compared.
DIVIDES_APPROXIMATELY = "emit_kernel"


def differences_of_one(source: str) -> list[str]:
    """Subtractions of an expression from itself."""
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub) and ast.dump(node.left) == ast.dump(node.right)
    ]


def fused_differences(assembly: str) -> list[str]:
    """Fused instructions for a * b - x where x is a * b, rounded: they give the rounding error, not 0."""
    products: dict[str, frozenset[str]] = {}
    negated: dict[str, str] = {}
    found = []
    for line in assembly.splitlines():
        text = line.split("//")[0].split(";")[0].strip()
        operation, _, rest = text.partition(" ") if " " in text else text.partition("\t")
        operands = [one.strip() for one in rest.split(",")]
        if re.match(r"mul(\.rn)?(\.ftz)?\.f(32|64)$|v_mul_f(32|64)", operation):
            products[operands[0]] = frozenset(operands[1:3])
        elif re.match(r"neg(\.ftz)?\.f(32|64)$", operation):
            negated[operands[0]] = operands[1]
        elif re.match(r"fma\.rn(\.ftz)?\.f(32|64)$|v_fma_f(32|64)", operation) and len(operands) == 4:
            addend = operands[3]
            subtracted = addend[1:] if addend.startswith("-") else negated.get(addend)
            if subtracted is not None and products.get(subtracted) == frozenset(operands[1:3]):
                found.append(text)
    return found


def test_nothing_is_subtracted_from_itself() -> None:
    found = {path.name: differences_of_one(path.read_text()) for path in KERNELS.glob("*.py")}
    assert len(found) > 8
    assert {name: one for name, one in found.items() if one} == {}, "is_finite says what is finite"


@pytest.mark.parametrize("situation", SITUATIONS, ids=str)
def test_every_launch_says_that_products_are_not_fused(situation: Situation) -> None:
    for target in ("sm_90", "gfx942"):
        for launch in situation.launches(target):
            assert launch.arguments["enable_fp_fusion"] is False, launch.name


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("situation", SITUATIONS, ids=str)
def test_ptx_has_no_fused_product_and_no_approximation(situation: Situation, target: str) -> None:
    for launch in situation.launches(target):
        ptx = compile_for(launch, target).code["ptx"]
        assert fused_differences(ptx) == [], launch.name
        approximate = set(re.findall(r"\b\w+\.(?:approx|full)\S*", ptx))
        assert approximate <= ({"div.full.f32"} if launch.name == DIVIDES_APPROXIMATELY else set()), launch.name
        if launch.name != HAS_LOGARITHM:
            assert set(re.findall(r"\b\S+\.ftz\S*|\bfma\.\S+", ptx)) == set(), launch.name


@pytest.mark.parametrize("situation", SITUATIONS, ids=str)
def test_amd_code_has_no_product_fused_with_its_own_difference(situation: Situation) -> None:
    for launch in situation.launches("gfx942"):
        if launch.name != HAS_LOGARITHM:
            assert fused_differences(compile_for(launch, "gfx942").code["amdgcn"]) == [], launch.name


@triton.jit
def _finite_kernel(x_ptr, y_ptr, finite_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    product = tl.load(x_ptr + i) * tl.load(y_ptr + i)
    tl.store(finite_ptr + i, (product - product == 0).to(tl.int32))


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_fused_difference_is_found(target: str, dtype: torch.dtype) -> None:
    """With fusion on, the compiler turns the check into a fused difference; with fusion off, it does not."""
    arguments: dict[str, Any] = {name: torch.empty(128, dtype=dtype, device="meta") for name in ("x_ptr", "y_ptr")}
    arguments |= {"finite_ptr": torch.empty(128, dtype=torch.int32, device="meta"), "BLOCK": 128}
    found = {}
    for fusion in (True, False):
        launch = Launch(_finite_kernel, (1,), {**arguments, "enable_fp_fusion": fusion})
        code = compile_for(launch, target).code
        found[fusion] = fused_differences(code.get("ptx") or code["amdgcn"])
    assert found[True]
    assert not found[False]


def test_a_difference_of_one_is_found_in_source() -> None:
    assert differences_of_one("ok = a - b\nbad = (x[0] - x[0] == 0)") == ["x[0] - x[0]"]
