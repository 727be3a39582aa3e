"""What single instructions compute, compared with numpy, exact fractions, and the PTX manual."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from tests.emulator import small
from tests.emulator.library import Approximation, Options, has_compiler

pytestmark = pytest.mark.skipif(not has_compiler(), reason="needs g++")

F32, F64, U16, U32, I32, U64, I64 = np.float32, np.float64, np.uint16, np.uint32, np.int32, np.uint64, np.int64
NAN32 = 0x7FFFFFFF
SPECIAL = np.array(
    [0.0, -0.0, 1.0, -1.5, math.pi, 1e-45, -1e-40, 1.17549435e-38, 3.4e38, -3.4e38, math.inf, -math.inf, math.nan, 0.1],
    dtype=F32,
)
PAIRS = tuple(grid.flatten() for grid in np.meshgrid(SPECIAL, SPECIAL))
INTEGERS = np.array([0, 1, 2, 7, 31, 32, 33, 255, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1], dtype=U32)
INTEGER_PAIRS = tuple(grid.flatten() for grid in np.meshgrid(INTEGERS, INTEGERS))


def bits(values: np.ndarray) -> np.ndarray:
    return values.view(f"u{values.dtype.itemsize}")


def canonical(values: np.ndarray) -> np.ndarray:
    """PTX's one NaN."""
    return np.where(np.isnan(values), U32(NAN32), bits(values))


@pytest.mark.parametrize(
    ("opcode", "function"), [("add.f32", np.add), ("sub.rn.f32", np.subtract), ("mul.f32", np.multiply)]
)
def test_sums_and_products_round_once(opcode: str, function) -> None:
    with np.errstate(all="ignore"):
        expected = function(*PAIRS)
    assert np.array_equal(bits(small.compute(opcode, PAIRS, F32)), canonical(expected))


def test_division_and_root_round_once() -> None:
    with np.errstate(all="ignore"):
        assert np.array_equal(bits(small.compute("div.rn.f32", PAIRS, F32)), canonical(np.divide(*PAIRS)))
        assert np.array_equal(bits(small.compute("sqrt.rn.f32", [SPECIAL], F32)), canonical(np.sqrt(SPECIAL)))


def test_a_fused_product_is_exact_before_it_is_added() -> None:
    """fma of a product and its negated rounded value is the product's rounding error, not 0."""
    generator = np.random.default_rng(1)
    a, b = generator.standard_normal((2, 64)).astype(F32)
    rounded = a * b
    fused = small.compute("fma.rn.f32", [a, b, -rounded], F32)
    triples = [[Fraction(float(one)) for one in triple] for triple in zip(a, b, rounded, strict=True)]
    exact = [x * y - z for x, y, z in triples]
    assert np.array_equal(fused, np.array([float(one) for one in exact], dtype=F32))
    assert np.count_nonzero(fused) > 40
    plain = small.compute("sub.f32", [small.compute("mul.f32", [a, b], F32), rounded], F32)
    assert not plain.any()


def test_minimum_and_maximum_drop_nan() -> None:
    """min.f32 of NaN and a number is the number; of the two zeros, it is the negative one."""
    x, y = PAIRS
    with np.errstate(all="ignore"):
        lowest = np.where(np.isnan(x), y, np.where(np.isnan(y), x, np.minimum(x, y)))
        highest = np.where(np.isnan(x), y, np.where(np.isnan(y), x, np.maximum(x, y)))
    zeros = (x == 0) & (y == 0)
    lowest = np.where(zeros & (np.signbit(x) | np.signbit(y)), F32(-0.0), lowest)
    highest = np.where(zeros & ~(np.signbit(x) & np.signbit(y)), F32(0.0), highest)
    assert np.array_equal(bits(small.compute("min.f32", PAIRS, F32)), canonical(lowest))
    assert np.array_equal(bits(small.compute("max.f32", PAIRS, F32)), canonical(highest))
    spread = small.compute("max.NaN.f32", PAIRS, F32)
    assert np.array_equal(np.isnan(spread), np.isnan(x) | np.isnan(y))


def test_ftz_takes_subnormals_for_zero() -> None:
    flushed = np.where(np.abs(SPECIAL) < F32(2.0**-126), np.copysign(F32(0), SPECIAL), SPECIAL)
    ones = np.ones_like(SPECIAL)
    assert np.array_equal(bits(small.compute("mul.ftz.f32", [SPECIAL, ones], F32)), canonical(flushed))
    root = small.compute("sqrt.approx.ftz.f32", [SPECIAL], F32)
    assert root[5] == 0, "approximate roots flush subnormals"
    assert small.compute("sqrt.rn.f32", [SPECIAL], F32)[5] > 0


@pytest.mark.parametrize(("approximation", "sign"), [(Approximation.UP, 1), (Approximation.DOWN, -1)])
def test_approximations_are_off_as_far_as_documented(approximation: Approximation, sign: int) -> None:
    x, y = F32([1, 2, 3, 10]), F32([3, 7, 1.1, 3])
    found = small.compute("div.full.f32", [x, y], F32, Options(approximation=approximation))
    assert np.array_equal(bits(found).astype(I64) - bits(x / y).astype(I64), np.full(4, 2 * sign))
    scattered = small.compute("div.full.f32", [x, y], F32, Options(approximation=Approximation.SCATTERED))
    assert (np.abs(bits(scattered).astype(I64) - bits(x / y).astype(I64)) <= 2).all()


COMPARISONS = {"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "eq": np.equal}


@pytest.mark.parametrize("name", COMPARISONS)
def test_comparisons_of_nan(name: str) -> None:
    ordered, unordered = (small.compute(f"setp.{one}.f32", PAIRS, U32) for one in (name, f"{name}u"))
    nan = np.isnan(PAIRS[0]) | np.isnan(PAIRS[1])
    with np.errstate(all="ignore"):
        expected = COMPARISONS[name](*PAIRS)
    assert np.array_equal(ordered, expected & ~nan)
    assert np.array_equal(unordered, expected | nan)
    assert np.array_equal(small.compute("setp.nan.f32", PAIRS, U32), nan)


def test_integers_wrap_and_divide_towards_zero() -> None:
    x, y = INTEGER_PAIRS
    assert np.array_equal(small.compute("add.s32", INTEGER_PAIRS, U32), x + y)
    assert np.array_equal(small.compute("mul.lo.s32", INTEGER_PAIRS, U32), x * y)
    signed = [(int(a), int(b)) for a, b in zip(x.view(I32), y.view(I32), strict=True)]
    quotients = [-1 if b == 0 else (abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1) for a, b in signed]
    assert np.array_equal(small.compute("div.s32", INTEGER_PAIRS, I32), np.array(quotients, dtype=I64).astype(I32))
    wide = np.array([a * b for a, b in signed], dtype=I64)
    assert np.array_equal(small.compute("mul.wide.s32", INTEGER_PAIRS, I64), wide)
    assert np.array_equal(small.compute("mul.hi.s32", INTEGER_PAIRS, I32), (wide >> 32).astype(I32))
    less = small.compute("setp.lt.s32", INTEGER_PAIRS, U32)
    assert np.array_equal(less, [a < b for a, b in signed])
    assert np.array_equal(small.compute("setp.lt.u32", INTEGER_PAIRS, U32), x < y)


def test_shifts_are_clamped() -> None:
    x, n = INTEGER_PAIRS
    by = [min(int(one), 32) for one in n]
    left = np.array([int(value) << count & 0xFFFFFFFF for value, count in zip(x, by, strict=True)], dtype=U32)
    right = np.array([int(value) >> count for value, count in zip(x.view(I32), by, strict=True)], dtype=I32)
    assert np.array_equal(small.compute("shl.b32", INTEGER_PAIRS, U32), left)
    assert np.array_equal(small.compute("shr.s32", INTEGER_PAIRS, I32), right)


def test_bits_are_picked_out() -> None:
    word, position, length = U32([0xDEADBEEF] * 5), U32([0, 4, 31, 28, 40]), U32([8, 12, 1, 8, 3])
    assert small.compute("bfe.u32", [word, position, length], U32).tolist() == [0xEF, 0xBEE, 1, 0xD, 0]
    negative = small.compute("bfe.s32", [word, position, length], I32).tolist()
    # Bits beyond the word are copies of its sign.
    assert negative == [0xEF - 256, 0xBEE - 4096, -1, 0xD - 16, -1]
    low, high = U32([0x03020100]), U32([0x07060504])
    assert small.compute("prmt.b32", [low, high, U32([0x5410])], U32).tolist() == [0x05040100]
    assert small.compute("prmt.b32", [U32([0x80]), high, U32([0x8888])], U32).tolist() == [0xFFFFFFFF]
    assert small.compute("shf.l.wrap.b32", [low, high, U32([8])], U32).tolist() == [0x06050403]


def test_formats_of_16_bits_round_to_even() -> None:
    values = np.concatenate([SPECIAL, F32([65519.9, 65520, 1.0009765, 6e-8, 5.9e-8, 2.98e-8, 1.00390625, 1.01171875])])
    halves = small.compute("cvt.rn.f16.f32", [values], U16)
    with np.errstate(all="ignore"):
        expected = np.where(np.isnan(values), U16(0x7FFF), bits(values.astype(np.float16)))
    assert np.array_equal(halves, expected)
    brains = small.compute("cvt.rn.bf16.f32", [values], U16)
    ours = brains.astype(U32) << U32(16)
    finite = np.isfinite(values) & np.isfinite(ours.view(F32))
    # The nearest of its neighbours, and in a tie the even one.
    for value, brain in zip(values[finite], brains[finite], strict=True):
        neighbours = (brain.astype(I64) + np.array([-1, 0, 1])) & 0xFFFF
        error = np.abs((neighbours.astype(U32) << U32(16)).view(F32).astype(F64) - F64(value))
        error = np.where(np.isnan(error), np.inf, error)
        assert error[1] == error.min()
        assert brain % 2 == 0 or np.count_nonzero(error == error.min()) == 1
    widened = small.compute("cvt.f32.f16", [halves], F32)
    assert np.array_equal(bits(widened), canonical(halves.view(np.float16).astype(F32)))


def test_conversions_to_integers_saturate() -> None:
    values = F64([0.9, -0.9, 1e300, -1e300, math.nan, 2.0**62])
    lowest, highest = -(2**63), 2**63 - 1
    assert small.compute("cvt.rzi.s64.f64", [values], I64).tolist() == [0, 0, highest, lowest, lowest, 2**62]
    assert small.compute("cvt.rmi.f64.f64", [values[:2]], F64).tolist() == [0, -1]


def test_what_is_not_modelled_is_refused() -> None:
    with pytest.raises(NotImplementedError, match=r"sin\.approx.* in line \d+"):
        small.run("\tsin.approx.f32 %r1, %r0;", [])
    with pytest.raises(NotImplementedError, match="unknown register %x"):
        small.run("\tadd.s32 %r1, %r0, %x;", [])
    with pytest.raises(NotImplementedError, match="width of register %d0"):
        small.run("\tadd.s32 %r1, %r0, %d0;", [])
