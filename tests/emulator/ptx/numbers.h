// Numbers as PTX has them: its NaN, subnormals flushed to zero, minimum and maximum, formats of 16 bits and TF32.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace ptx {

// Arithmetic gives the same NaN whatever NaNs the operands are (PTX ISA, "Floating Point Instructions").
inline float canonical(float x) { return x != x ? std::bit_cast<float>(0x7fffffffu) : x; }
inline double canonical(double x) { return x != x ? std::bit_cast<double>(0x7fffffffffffffffull) : x; }

// .ftz: subnormals become 0.
inline float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

// If one operand is NaN, the result is the other; -0 is less than +0.
template <class T>
inline T minimum(T a, T b) {
  if (a != a) return canonical(b);
  if (b != b) return a;
  if (a == b) return std::signbit(a) ? a : b;
  return a < b ? a : b;
}

template <class T>
inline T maximum(T a, T b) {
  if (a != a) return canonical(b);
  if (b != b) return a;
  if (a == b) return std::signbit(a) ? b : a;
  return a > b ? a : b;
}

inline float bfloat16_to_float(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

inline uint16_t float_to_bfloat16(float x) {
  if (x != x) return 0x7fff;
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);  // ties to even
}

inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half >> 15) << 31;
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  if (exponent == 31) return std::bit_cast<float>(fraction ? 0x7fffffffu : sign | 0x7f800000u);
  const float magnitude = exponent ? std::ldexp(1024.0f + fraction, exponent - 25) : std::ldexp(1.0f * fraction, -24);
  return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
}

inline uint16_t float_to_half(float x) {
  if (x != x) return 0x7fff;
  const uint16_t sign = std::bit_cast<uint32_t>(x) >> 16 & 0x8000;
  const float magnitude = std::fabs(x);
  if (magnitude >= 65520.0f) return sign | 0x7c00;  // rounds to infinity
  if (magnitude == 0) return sign;
  int exponent;
  std::frexp(magnitude, &exponent);
  exponent = exponent - 1 < -14 ? -14 : exponent - 1;
  const auto rounded = static_cast<uint32_t>(std::nearbyint(std::ldexp(static_cast<double>(magnitude), 10 - exponent)));
  // A subnormal has no hidden bit; a carry out of the fraction raises the exponent by itself.
  const uint32_t bits = rounded >= 1024 ? (static_cast<uint32_t>(exponent + 15) << 10) + (rounded - 1024) : rounded;
  return static_cast<uint16_t>(sign | bits);
}

// cvt.rna.tf32: to nearest, ties away from zero.
inline uint32_t float_to_tf32(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (x != x) return 0x7fffffff;
  if ((bits & 0x7fffffff) == 0x7f800000) return bits;
  return (bits + 0x1000) & 0xffffe000;
}

// 2 to a power within the range of normal doubles.
inline double power_of_two(int exponent) { return std::bit_cast<double>(static_cast<uint64_t>(1023 + exponent) << 52); }

}  // namespace ptx
