"""Matrix products, compared with exact fractions that follow MMA-Sim's description and the ISA's fragment layouts."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from tests.emulator import small
from tests.emulator.library import Options, TensorCores, has_compiler

pytestmark = pytest.mark.skipif(not has_compiler(), reason="needs g++")

# Elements of a row, stored bytes, lowest exponent of a normal number.
FORMATS = {"bf16": (16, 2, -126), "f16": (16, 2, -14), "tf32": (8, 4, -126)}
IMAGE_BYTES = 12288


def rounded(values: np.ndarray, kind: str) -> np.ndarray:
    """The values in the format's precision, as float32: rounded for f16, else truncated."""
    if kind == "f16":
        return values.astype(np.float16).astype(np.float32)
    kept = {"bf16": 0xFFFF0000, "tf32": 0xFFFFE000}[kind]
    return (values.astype(np.float32).view(np.uint32) & np.uint32(kept)).view(np.float32)


def pack(values: np.ndarray, kind: str) -> np.ndarray:
    """32-bit registers that hold consecutive elements along the last axis."""
    if kind == "tf32":
        return values.view(np.uint32)
    halves = values.astype(np.float16).view(np.uint16) if kind == "f16" else (values.view(np.uint32) >> 16)
    halves = halves.astype(np.uint32)
    return halves[..., 0::2] | halves[..., 1::2] << np.uint32(16)


def multiply(a: np.ndarray, b: np.ndarray, c: np.ndarray, kind: str, cores: TensorCores) -> np.ndarray:
    """c + a @ b by one mma: a [16, K], b [K, 8], c [16, 8]."""
    depth = FORMATS[kind][0]
    lanes = np.arange(32)
    g, t = lanes // 4, lanes % 4
    packed_a, packed_b = pack(a, kind), pack(np.ascontiguousarray(b.T), kind)
    registers = [packed_a[g + part % 2 * 8, t + part // 2 * 4] for part in range(4)]
    registers += [packed_b[g, t + part * 4] for part in range(2)]
    registers += [c[g + part // 2 * 8, 2 * t + part % 2].view(np.uint32) for part in range(4)]
    memory = np.zeros((10, 32), dtype=np.uint64)
    memory[:] = np.array(registers, dtype=np.uint64)
    result = np.zeros((4, 32), dtype=np.uint64)
    body = ["\tadd.s64 %d3, %d2, %d0;", "\tadd.s64 %d4, %d1, %d0;"]
    body += [f"\tld.global.b32 %r{10 + n}, [%d3+{256 * n}];" for n in range(10)]
    a_names, b_names, c_names = "%r10, %r11, %r12, %r13", "%r14, %r15", "%r16, %r17, %r18, %r19"
    opcode = f"mma.sync.aligned.m16n8k{depth}.row.col.f32.{kind}.{kind}.f32"
    body.append(f"\t{opcode} {{ %r1, %r2, %r3, %r4 }}, {{ {a_names} }}, {{ {b_names} }}, {{ {c_names} }};")
    body += [f"\tst.global.b32 [%d4+{256 * n}], %r{1 + n};" for n in range(4)]
    assert small.run("\n".join(body), [result, memory], options=Options(cores)) == {}
    product = np.zeros((16, 8), dtype=np.float32)
    for part in range(4):
        product[g + part // 2 * 8, 2 * t + part % 2] = result[part].astype(np.uint32).view(np.float32)
    return product


def exponent(value: float, lowest: int) -> int:
    """The exponent with which a format stores a number; that of 0 is the lowest of float32."""
    return max(int(np.frexp(value)[1]) - 1, lowest) if value else -126


def cut(value: Fraction, unit: Fraction) -> Fraction:
    """The value truncated to a multiple of `unit`."""
    steps = abs(value) // unit * unit
    return steps if value > 0 else -steps


def aligned_sum(a: np.ndarray, b: np.ndarray, c: float, fraction_bits: int, lowest: int) -> float:
    """Products and c, truncated to `fraction_bits` below the largest exponent, added, and truncated to float32."""
    exponents = [exponent(x, lowest) + exponent(y, lowest) for x, y in zip(a, b, strict=True)]
    unit = Fraction(2) ** (max([*exponents, exponent(c, -126)]) - fraction_bits)
    total = sum(cut(Fraction(float(x)) * Fraction(float(y)), unit) for x, y in zip(a, b, strict=True))
    total += cut(Fraction(float(c)), unit)
    if total == 0:
        return 0.0
    top = max(int(np.floor(np.log2(float(abs(total))))), -126)
    # A logarithm near a power of two may be off by one.
    top += (abs(total) >= Fraction(2) ** (top + 1)) - (top > -126 and abs(total) < Fraction(2) ** top)
    return float(cut(total, Fraction(2) ** (top - 23)))


@pytest.mark.parametrize("scale", [1.0, 1e-3, 3e-20])
@pytest.mark.parametrize("cores", [TensorCores.AMPERE, TensorCores.HOPPER])
@pytest.mark.parametrize("kind", FORMATS)
def test_products_are_aligned_and_cut_off(kind: str, cores: TensorCores, scale: float) -> None:
    depth, _, lowest = FORMATS[kind]
    generator = np.random.default_rng(len(kind))
    spread = np.exp2(generator.integers(-9, 3, (2, 16, depth)))
    values = (generator.standard_normal((2, 16, depth)) * spread * scale).astype(np.float32)
    a, b = rounded(values[0], kind), np.ascontiguousarray(rounded(values[1], kind)[:8].T)
    a[0, :3] = 0
    c = (generator.standard_normal((16, 8)) * scale**2).astype(np.float32)
    expected = c.copy()
    steps, bits = (2, 24) if cores is TensorCores.AMPERE else (1, 25)
    for step in range(steps):
        part = slice(step * depth // steps, (step + 1) * depth // steps)
        for row in range(16):
            for column in range(8):
                expected[row, column] = aligned_sum(a[row, part], b[part, column], expected[row, column], bits, lowest)
    found = multiply(a, b, c, kind, cores)
    assert np.array_equal(found, expected)
    exact = multiply(a, b, c, kind, TensorCores.EXACT)
    reference = (c.astype(np.float64) + a.astype(np.float64) @ b.astype(np.float64)).astype(np.float32)
    assert np.allclose(exact, reference, rtol=1e-6, atol=float(np.abs(reference).max()) * 1e-7)
    if scale == 1.0:
        assert not np.array_equal(found, exact), "hardware cuts off"


@pytest.mark.parametrize("cores", [TensorCores.AMPERE, TensorCores.HOPPER])
def test_nan_and_infinity_stay_in_their_row_and_column(cores: TensorCores) -> None:
    a, b = np.ones((16, 16), dtype=np.float32), np.ones((16, 8), dtype=np.float32)
    a[3, 5], b[9, 2], b[4, 6] = np.nan, np.inf, -np.inf
    b[1, 6] = np.inf
    found = multiply(a, b, np.zeros((16, 8), dtype=np.float32), "bf16", cores)
    expected = np.full((16, 8), 16.0)
    expected[:, 2], expected[:, 6], expected[3] = np.inf, np.nan, np.nan
    assert np.array_equal(found, expected, equal_nan=True)


def test_a_sum_that_overflowed_stays_infinite() -> None:
    """Ampere adds eight products, and then the other eight: they may not bring back what was infinite."""
    a, b = np.ones((16, 16), dtype=np.float32), np.zeros((16, 8), dtype=np.float32)
    b[:8], b[8:] = rounded(np.float32([2e38]), "bf16"), rounded(np.float32([-1e38]), "bf16")
    found = multiply(a, b, np.zeros((16, 8), dtype=np.float32), "bf16", TensorCores.AMPERE)
    assert np.array_equal(found, np.full((16, 8), np.inf))


def shared_image(rows: np.ndarray, pitch: int, leading: int, stride: int) -> np.ndarray:
    """Rows of 16-bit elements in wgmma's layout: patterns of eight rows, one pitch wide, swizzled by 16 bytes."""
    image = np.zeros(IMAGE_BYTES, dtype=np.uint8)
    for row, line in enumerate(np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), -1, 16)):
        for chunk, data in enumerate(line):
            across, along = divmod(16 * chunk, pitch)
            place = row // 8 * stride + row % 8 * pitch + across * leading + along
            place ^= place // 128 % (pitch // 16) * 16
            image[place : place + 16] = data
    return image


def descriptor(start: int, leading: int, stride: int, pitch: int) -> int:
    mode = {128: 1, 64: 2, 32: 3}[pitch]
    return start >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | mode << 62


@pytest.mark.parametrize("pitch", [128, 64, 32])
@pytest.mark.parametrize("transposed", [False, True], ids=["along K", "transposed"])
@pytest.mark.parametrize("a_is_shared", [False, True], ids=["A in registers", "A in shared memory"])
def test_a_warpgroup_multiplies_what_its_descriptors_say(a_is_shared: bool, transposed: bool, pitch: int) -> None:
    columns = 80
    generator = np.random.default_rng(pitch)
    a, b = (generator.integers(-8, 9, shape).astype(np.float32) for shape in ((64, 16), (16, columns)))
    a_bits, b_bits = ((one.view(np.uint32) >> 16).astype(np.uint16) for one in (a, b))
    leading, stride = (16 * pitch, 8 * pitch) if transposed else (0, 8 * pitch)
    image = np.concatenate(
        [
            shared_image(a_bits, pitch, 0, 8 * pitch),
            shared_image(b_bits if transposed else b_bits.T, pitch, leading, stride),
        ]
    ).view(np.uint64)
    lanes = np.arange(128)
    row, pair = lanes // 32 * 16 + lanes % 32 // 4, lanes % 4
    packed = pack(a, "bf16")
    fragments = np.array([packed[row + part % 2 * 8, pair + part // 2 * 4] for part in range(4)], dtype=np.uint64)
    result = np.zeros((columns // 2, 128), dtype=np.uint64)

    body = ["\tmov.u32 %r1, global_smem;", "\tcvt.u64.u32 %d5, %r1;", "\tadd.s64 %d6, %d5, %d0;"]
    body += ["\tadd.s64 %d7, %d2, %d0;", "\tadd.s64 %d8, %d3, %d0;", "\tadd.s64 %d9, %d1, %d0;"]
    for part in range(len(image) // 128):
        body += [f"\tld.global.b64 %d10, [%d7+{1024 * part}];", "\tcvt.u32.u64 %r2, %d6;"]
        body += [f"\tst.shared.b64 [%r2+{1024 * part}], %d10;"]
    body += [f"\tld.global.b32 %r{50 + part}, [%d8+{1024 * part}];" for part in range(4)]
    body += ["\tfence.proxy.async.shared::cta;", "\tbar.sync 0;", "\twgmma.fence.sync.aligned;"]
    body += [f"\tmov.b64 %d11, {descriptor(0, 0, 8 * pitch, pitch)};"]
    body += [f"\tmov.b64 %d12, {descriptor(IMAGE_BYTES, leading, stride, pitch)};"]
    d = ", ".join(f"%r{10 + number}" for number in range(columns // 2))
    first, flags = ("%d11", "0, 1, 1, 0") if a_is_shared else ("{ %r50, %r51, %r52, %r53 }", "0, 1, 1")
    opcode = f"wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.bf16.bf16"
    body += [f"\t{opcode} {{ {d} }}, {first}, %d12, {flags}, {int(transposed)};"]
    body += ["\twgmma.commit_group.sync.aligned;", "\twgmma.wait_group.sync.aligned 0;"]
    body += [f"\tst.global.b32 [%d9+{1024 * number}], %r{10 + number};" for number in range(columns // 2)]
    assert small.run("\n".join(body), [result, image, fragments], threads=128, shared=2 * IMAGE_BYTES) == {}

    product = np.zeros((64, columns), dtype=np.float32)
    for number, values in enumerate(result.astype(np.uint32).view(np.float32)):
        product[row + number // 2 % 2 * 8, number // 4 * 8 + 2 * pair + number % 2] = values
    assert np.array_equal(product, a @ b)
