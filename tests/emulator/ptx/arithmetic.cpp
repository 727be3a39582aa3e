// Instructions that compute each lane's result from its own operands (PTX ISA, "Instruction Set").
//
// Products and sums are rounded one by one, and fused only where the PTX says fma: fusing by ptxas is not modelled.
// Results of undefined operands are undefined.
#include <algorithm>
#include <cmath>
#include <limits>

#include "numbers.h"
#include "parser.h"

namespace ptx {

namespace {

using Table = std::unordered_map<std::string, Factory>;
using i16 = int16_t;
using i32 = int32_t;
using i64 = int64_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;

template <class R, class A, class F>
Factory unary(F f) {
  return [f](Operands& operands) -> Execute {
    const int d = operands.target<R>(0), a = operands.source<A>(1);
    return [=](Warp& warp) {
      auto &to = values<R>(warp, d);
      auto &from = values<A>(warp, a);
      for_lanes(warp.executing, [&](int lane) { to[lane] = to_word<R>(f(from_word<A>(from[lane]))); });
      mark_undefined<R>(warp, d, undefined<A>(warp, a));
    };
  };
}

template <class R, class A, class B, class F>
Factory binary(F f) {
  return [f](Operands& operands) -> Execute {
    const int d = operands.target<R>(0), a = operands.source<A>(1), b = operands.source<B>(2);
    return [=](Warp& warp) {
      auto &to = values<R>(warp, d);
      auto &x = values<A>(warp, a);
      auto &y = values<B>(warp, b);
      for_lanes(warp.executing, [&](int lane) {
        to[lane] = to_word<R>(f(from_word<A>(x[lane]), from_word<B>(y[lane])));
      });
      mark_undefined<R>(warp, d, undefined<A>(warp, a) | undefined<B>(warp, b));
    };
  };
}

template <class R, class A, class B, class C, class F>
Factory ternary(F f) {
  return [f](Operands& operands) -> Execute {
    const int d = operands.target<R>(0), a = operands.source<A>(1), b = operands.source<B>(2),
              c = operands.source<C>(3);
    return [=](Warp& warp) {
      auto &to = values<R>(warp, d);
      auto &x = values<A>(warp, a);
      auto &y = values<B>(warp, b);
      auto &z = values<C>(warp, c);
      for_lanes(warp.executing, [&](int lane) {
        to[lane] = to_word<R>(f(from_word<A>(x[lane]), from_word<B>(y[lane]), from_word<C>(z[lane])));
      });
      mark_undefined<R>(warp, d, undefined<A>(warp, a) | undefined<B>(warp, b) | undefined<C>(warp, c));
    };
  };
}

template <class T, class F>
Factory comparison(F f) {
  return [f](Operands& operands) -> Execute {
    const int d = operands.target(0, Kind::predicate), a = operands.source<T>(1), b = operands.source<T>(2);
    return [=](Warp& warp) {
      auto &x = values<T>(warp, a);
      auto &y = values<T>(warp, b);
      LaneMask result = 0;
      for_lanes(warp.executing, [&](int lane) {
        result |= static_cast<LaneMask>(f(from_word<T>(x[lane]), from_word<T>(y[lane]))) << lane;
      });
      write_predicate(warp, d, result, undefined<T>(warp, a) | undefined<T>(warp, b));
    };
  };
}

// selp: the value that is not chosen may be undefined.
template <class T>
Factory selection() {
  return [](Operands& operands) -> Execute {
    const int d = operands.target<T>(0), a = operands.source<T>(1), b = operands.source<T>(2),
              p = operands.source(3, Kind::predicate);
    return [=](Warp& warp) {
      auto &to = values<T>(warp, d);
      auto &x = values<T>(warp, a);
      auto &y = values<T>(warp, b);
      const LaneMask chosen = warp.predicate[p];
      const LaneMask unknown = (undefined<T>(warp, a) & chosen) | (undefined<T>(warp, b) & ~chosen);
      for_lanes(warp.executing, [&](int lane) { to[lane] = chosen >> lane & 1 ? x[lane] : y[lane]; });
      mark_undefined<T>(warp, d, unknown | warp.undefined_predicate[p]);
    };
  };
}

template <class T>
Factory move() {
  return unary<T, T>([](T a) { return a; });
}

// Operations on predicates. A result is defined if one defined operand decides it.
enum class Logic { conjunction, disjunction, exclusive };

template <Logic logic>
Factory logical() {
  return [](Operands& operands) -> Execute {
    const int d = operands.target(0, Kind::predicate), a = operands.source(1, Kind::predicate),
              b = operands.source(2, Kind::predicate);
    return [=](Warp& warp) {
      const LaneMask x = warp.predicate[a], y = warp.predicate[b];
      const LaneMask x_unknown = warp.undefined_predicate[a], y_unknown = warp.undefined_predicate[b];
      if constexpr (logic == Logic::conjunction) {
        const LaneMask decided = (~x & ~x_unknown) | (~y & ~y_unknown);
        write_predicate(warp, d, x & y, (x_unknown | y_unknown) & ~decided);
      } else if constexpr (logic == Logic::disjunction) {
        const LaneMask decided = (x & ~x_unknown) | (y & ~y_unknown);
        write_predicate(warp, d, x | y, (x_unknown | y_unknown) & ~decided);
      } else {
        write_predicate(warp, d, x ^ y, x_unknown | y_unknown);
      }
    };
  };
}

Factory negation() {
  return [](Operands& operands) -> Execute {
    const int d = operands.target(0, Kind::predicate), a = operands.source(1, Kind::predicate);
    return [=](Warp& warp) { write_predicate(warp, d, ~warp.predicate[a], warp.undefined_predicate[a]); };
  };
}

// Signed S and unsigned U integers of one width, written "16", "32" or "64".
template <class S, class U>
void add_integers(Table& table, const std::string& width) {
  constexpr u32 bits = 8 * sizeof(U);
  const std::string s = ".s" + width, u = ".u" + width, b = ".b" + width;
  for (const std::string& type : {s, u}) {
    table["add" + type] = binary<U, U, U>([](U x, U y) -> U { return x + y; });
    table["sub" + type] = binary<U, U, U>([](U x, U y) -> U { return x - y; });
    table["mul.lo" + type] = binary<U, U, U>([](U x, U y) -> U { return static_cast<U>(u64(x) * u64(y)); });
    table["mad.lo" + type] = ternary<U, U, U, U>([](U x, U y, U z) -> U { return static_cast<U>(u64(x) * y + z); });
  }
  table["min" + s] = binary<S, S, S>([](S x, S y) -> S { return x < y ? x : y; });
  table["max" + s] = binary<S, S, S>([](S x, S y) -> S { return x > y ? x : y; });
  table["min" + u] = binary<U, U, U>([](U x, U y) -> U { return x < y ? x : y; });
  table["max" + u] = binary<U, U, U>([](U x, U y) -> U { return x > y ? x : y; });
  // Division by zero is not an error; the lowest number over -1 wraps.
  table["div" + s] = binary<S, S, S>([](S x, S y) -> S { return y == 0 ? -1 : y == -1 ? S(U(0) - U(x)) : x / y; });
  table["rem" + s] = binary<S, S, S>([](S x, S y) -> S { return y == 0 ? x : y == -1 ? 0 : x % y; });
  table["div" + u] = binary<U, U, U>([](U x, U y) -> U { return y == 0 ? U(-1) : x / y; });
  table["rem" + u] = binary<U, U, U>([](U x, U y) -> U { return y == 0 ? x : x % y; });
  table["neg" + s] = unary<U, U>([](U x) -> U { return U(0) - x; });
  table["abs" + s] = unary<U, S>([](S x) -> U { return x < 0 ? U(0) - U(x) : U(x); });
  table["and" + b] = binary<U, U, U>([](U x, U y) -> U { return x & y; });
  table["or" + b] = binary<U, U, U>([](U x, U y) -> U { return x | y; });
  table["xor" + b] = binary<U, U, U>([](U x, U y) -> U { return x ^ y; });
  table["not" + b] = unary<U, U>([](U x) -> U { return ~x; });
  // A shift by more than the width counts as a shift by the width.
  table["shl" + b] = binary<U, U, u32>([](U x, u32 n) -> U { return n >= bits ? 0 : x << n; });
  table["shr" + u] = table["shr" + b] = binary<U, U, u32>([](U x, u32 n) -> U { return n >= bits ? 0 : x >> n; });
  table["shr" + s] = binary<S, S, u32>([](S x, u32 n) -> S { return x >> (n >= bits ? bits - 1 : n); });
  for (const std::string& type : {s, u, b}) {
    table["setp.eq" + type] = comparison<U>([](U x, U y) { return x == y; });
    table["setp.ne" + type] = comparison<U>([](U x, U y) { return x != y; });
    table["selp" + type] = selection<U>();
    table["mov" + type] = move<U>();
  }
  table["setp.lt" + s] = comparison<S>([](S x, S y) { return x < y; });
  table["setp.le" + s] = comparison<S>([](S x, S y) { return x <= y; });
  table["setp.gt" + s] = comparison<S>([](S x, S y) { return x > y; });
  table["setp.ge" + s] = comparison<S>([](S x, S y) { return x >= y; });
  table["setp.lt" + u] = table["setp.lo" + u] = comparison<U>([](U x, U y) { return x < y; });
  table["setp.le" + u] = table["setp.ls" + u] = comparison<U>([](U x, U y) { return x <= y; });
  table["setp.gt" + u] = table["setp.hi" + u] = comparison<U>([](U x, U y) { return x > y; });
  table["setp.ge" + u] = table["setp.hs" + u] = comparison<U>([](U x, U y) { return x >= y; });
}

u32 bit_field(u32 value, u32 position, u32 length) {
  position &= 255;
  length &= 255;
  if (position > 31 || length == 0) return 0;
  return (value >> position) & (length > 31 ? ~0u : (1u << length) - 1);
}

i32 signed_bit_field(u32 value, u32 position, u32 length) {
  position &= 255;
  length &= 255;
  if (length == 0) return 0;
  const u32 sign = value >> std::min(31u, position + length - 1) & 1;
  u32 result = 0;
  for (u32 bit = 0; bit < 32; ++bit)
    result |= (bit < length && position + bit < 32 ? value >> (position + bit) & 1 : sign) << bit;
  return static_cast<i32>(result);
}

u32 permuted_bytes(u32 low, u32 high, u32 selectors) {
  const u64 bytes = static_cast<u64>(high) << 32 | low;
  u32 result = 0;
  for (int position = 0; position < 4; ++position) {
    const u32 selector = selectors >> 4 * position & 15;
    u32 byte = bytes >> 8 * (selector & 7) & 255;
    if (selector & 8) byte = byte & 128 ? 255 : 0;  // its sign, eight times
    result |= byte << 8 * position;
  }
  return result;
}

// lop3 and bfi have four and five operands; Triton writes the last ones as constants.
Execute make_lop3(Operands& operands) {
  const int d = operands.target<u32>(0), a = operands.source<u32>(1), b = operands.source<u32>(2),
            c = operands.source<u32>(3);
  const auto table = static_cast<u32>(operands.number(4));
  return [=](Warp& warp) {
    for_lanes(warp.executing, [&](int lane) {
      const u32 x = read<u32>(warp, a, lane), y = read<u32>(warp, b, lane), z = read<u32>(warp, c, lane);
      u32 result = 0;
      for (int row = 0; row < 8; ++row)
        if (table >> row & 1) result |= (row & 4 ? x : ~x) & (row & 2 ? y : ~y) & (row & 1 ? z : ~z);
      write(warp, d, lane, result);
    });
    mark_undefined<u32>(warp, d, undefined<u32>(warp, a) | undefined<u32>(warp, b) | undefined<u32>(warp, c));
  };
}

Execute make_bfi(Operands& operands) {
  const int d = operands.target<u32>(0), a = operands.source<u32>(1), b = operands.source<u32>(2),
            from = operands.source<u32>(3), count = operands.source<u32>(4);
  return [=](Warp& warp) {
    for_lanes(warp.executing, [&](int lane) {
      const u32 field = read<u32>(warp, a, lane);
      u32 result = read<u32>(warp, b, lane);
      const u32 first = read<u32>(warp, from, lane) & 255, length = read<u32>(warp, count, lane) & 255;
      for (u32 bit = 0; bit < length && first + bit < 32; ++bit)
        result = (result & ~(1u << (first + bit))) | (field >> bit & 1) << (first + bit);
      write(warp, d, lane, result);
    });
    mark_undefined<u32>(warp, d, undefined<u32>(warp, a) | undefined<u32>(warp, b) | undefined<u32>(warp, from) |
                                     undefined<u32>(warp, count));
  };
}

void add_bits_and_wide_products(Table& table) {
  table["mul.wide.s16"] = binary<i32, i16, i16>([](i16 x, i16 y) -> i32 { return i32(x) * y; });
  table["mul.wide.u16"] = binary<u32, u16, u16>([](u16 x, u16 y) -> u32 { return u32(x) * y; });
  table["mul.wide.s32"] = binary<i64, i32, i32>([](i32 x, i32 y) -> i64 { return i64(x) * y; });
  table["mul.wide.u32"] = binary<u64, u32, u32>([](u32 x, u32 y) -> u64 { return u64(x) * y; });
  table["mad.wide.s32"] =
      ternary<u64, i32, i32, u64>([](i32 x, i32 y, u64 z) -> u64 { return u64(i64(x) * y) + z; });
  table["mad.wide.u32"] = ternary<u64, u32, u32, u64>([](u32 x, u32 y, u64 z) -> u64 { return u64(x) * y + z; });
  table["mul.hi.s32"] = binary<i32, i32, i32>([](i32 x, i32 y) -> i32 { return i32(i64(x) * y >> 32); });
  table["mul.hi.u32"] = binary<u32, u32, u32>([](u32 x, u32 y) -> u32 { return u32(u64(x) * y >> 32); });
  table["mul.hi.s64"] = binary<i64, i64, i64>([](i64 x, i64 y) -> i64 { return i64(__int128(x) * y >> 64); });
  table["mul.hi.u64"] =
      binary<u64, u64, u64>([](u64 x, u64 y) -> u64 { return u64(static_cast<unsigned __int128>(x) * y >> 64); });
  table["bfe.u32"] = ternary<u32, u32, u32, u32>(bit_field);
  table["bfe.s32"] = ternary<i32, u32, u32, u32>(signed_bit_field);
  table["bfi.b32"] = make_bfi;
  table["lop3.b32"] = make_lop3;
  table["prmt.b32"] = ternary<u32, u32, u32, u32>(permuted_bytes);
  table["shf.l.wrap.b32"] = ternary<u32, u32, u32, u32>(
      [](u32 low, u32 high, u32 n) -> u32 { return ((u64(high) << 32 | low) << (n & 31)) >> 32; });
  table["shf.r.wrap.b32"] = ternary<u32, u32, u32, u32>(
      [](u32 low, u32 high, u32 n) -> u32 { return (u64(high) << 32 | low) >> (n & 31); });
  table["clz.b32"] = unary<u32, u32>([](u32 x) -> u32 { return std::countl_zero(x); });
  table["popc.b32"] = unary<u32, u32>([](u32 x) -> u32 { return std::popcount(x); });
  table["and.pred"] = logical<Logic::conjunction>();
  table["or.pred"] = logical<Logic::disjunction>();
  table["xor.pred"] = logical<Logic::exclusive>();
  table["not.pred"] = negation();
}

template <class T>
void add_floats(Table& table, const std::string& type) {
  for (const char* rounding : {"", ".rn"}) {
    table["add" + (rounding + type)] = binary<T, T, T>([](T x, T y) { return canonical(x + y); });
    table["sub" + (rounding + type)] = binary<T, T, T>([](T x, T y) { return canonical(x - y); });
    table["mul" + (rounding + type)] = binary<T, T, T>([](T x, T y) { return canonical(x * y); });
  }
  table["fma.rn" + type] = ternary<T, T, T, T>([](T x, T y, T z) { return canonical(std::fma(x, y, z)); });
  table["div.rn" + type] = binary<T, T, T>([](T x, T y) { return canonical(x / y); });
  table["sqrt.rn" + type] = unary<T, T>([](T x) { return canonical(std::sqrt(x)); });
  table["rcp.rn" + type] = unary<T, T>([](T x) { return canonical(1 / x); });
  table["min" + type] = binary<T, T, T>(minimum<T>);
  table["max" + type] = binary<T, T, T>(maximum<T>);
  table["min.NaN" + type] = binary<T, T, T>([](T x, T y) { return x != x || y != y ? canonical(T(NAN)) : minimum(x, y); });
  table["max.NaN" + type] = binary<T, T, T>([](T x, T y) { return x != x || y != y ? canonical(T(NAN)) : maximum(x, y); });
  table["neg" + type] = unary<T, T>([](T x) { return -x; });
  table["abs" + type] = unary<T, T>([](T x) { return std::fabs(x); });
  table["selp" + type] = selection<T>();
  table["mov" + type] = move<T>();
  table["setp.eq" + type] = comparison<T>([](T x, T y) { return x == y; });
  table["setp.ne" + type] = comparison<T>([](T x, T y) { return x < y || x > y; });
  table["setp.lt" + type] = comparison<T>([](T x, T y) { return x < y; });
  table["setp.le" + type] = comparison<T>([](T x, T y) { return x <= y; });
  table["setp.gt" + type] = comparison<T>([](T x, T y) { return x > y; });
  table["setp.ge" + type] = comparison<T>([](T x, T y) { return x >= y; });
  // Unordered comparisons are true if an operand is NaN.
  table["setp.equ" + type] = comparison<T>([](T x, T y) { return !(x < y || x > y); });
  table["setp.neu" + type] = comparison<T>([](T x, T y) { return !(x == y); });
  table["setp.ltu" + type] = comparison<T>([](T x, T y) { return !(x >= y); });
  table["setp.leu" + type] = comparison<T>([](T x, T y) { return !(x > y); });
  table["setp.gtu" + type] = comparison<T>([](T x, T y) { return !(x <= y); });
  table["setp.geu" + type] = comparison<T>([](T x, T y) { return !(x < y); });
  table["setp.num" + type] = comparison<T>([](T x, T y) { return x == x && y == y; });
  table["setp.nan" + type] = comparison<T>([](T x, T y) { return x != x || y != y; });
}

// The approximate result, with an error of at most `ulps` units in the last place, the same for the same operands.
float approximated(float exact, uint64_t operands, int ulps) {
  const Approximation how = machine.approximation();
  if (how == Approximation::exact || exact == 0 || !std::isfinite(exact)) return exact;
  int steps = how == Approximation::up ? ulps : -ulps;
  if (how == Approximation::scattered) {
    uint64_t hash = operands + 0x9e3779b97f4a7c15ull * static_cast<uint64_t>(machine.options.seed);
    hash = (hash ^ hash >> 33) * 0xff51afd7ed558ccdull;  // MurmurHash3's last steps
    hash = (hash ^ hash >> 33) * 0xc4ceb9fe1a85ec53ull;
    steps = static_cast<int>((hash >> 32) % (2 * ulps + 1)) - ulps;
  }
  for (; steps > 0; --steps) exact = std::nextafter(exact, INFINITY);
  for (; steps < 0; ++steps) exact = std::nextafter(exact, -INFINITY);
  return exact;
}

uint64_t key(float x, float y = 0) { return static_cast<uint64_t>(std::bit_cast<u32>(x)) << 32 | std::bit_cast<u32>(y); }

float approximate_quotient(float x, float y) { return approximated(canonical(x / y), key(x, y), 2); }
float approximate_root(float x) { return approximated(canonical(std::sqrt(x)), key(x), 1); }
float approximate_reciprocal(float x) { return approximated(canonical(1 / x), key(x), 1); }

void add_flushing_and_approximate(Table& table) {
  for (const char* rounding : {"", ".rn"}) {
    const std::string type = std::string(rounding) + ".ftz.f32";
    table["add" + type] = binary<float, float, float>(
        [](float x, float y) { return flushed(canonical(flushed(x) + flushed(y))); });
    table["sub" + type] = binary<float, float, float>(
        [](float x, float y) { return flushed(canonical(flushed(x) - flushed(y))); });
    table["mul" + type] = binary<float, float, float>(
        [](float x, float y) { return flushed(canonical(flushed(x) * flushed(y))); });
  }
  table["fma.rn.ftz.f32"] = ternary<float, float, float, float>(
      [](float x, float y, float z) { return flushed(canonical(std::fma(flushed(x), flushed(y), flushed(z)))); });
  table["div.full.f32"] = binary<float, float, float>(approximate_quotient);
  table["div.full.ftz.f32"] = binary<float, float, float>(
      [](float x, float y) { return flushed(approximate_quotient(flushed(x), flushed(y))); });
  table["sqrt.approx.f32"] = unary<float, float>(approximate_root);
  table["sqrt.approx.ftz.f32"] = unary<float, float>([](float x) { return flushed(approximate_root(flushed(x))); });
  table["rcp.approx.ftz.f32"] = unary<float, float>([](float x) { return flushed(approximate_reciprocal(flushed(x))); });
}

// Conversion to an integer: rounded towards zero and clamped to its range; NaN gives 0, or the lowest 64-bit integer.
template <class I, class F>
I truncated(F x) {
  constexpr auto lowest = std::numeric_limits<I>::min(), highest = std::numeric_limits<I>::max();
  if (x != x) return sizeof(I) == 8 ? lowest : 0;
  if (x <= static_cast<F>(lowest)) return lowest;
  if (x >= static_cast<F>(highest)) return highest;
  return static_cast<I>(x);
}

// cvt from integer A, which is in the lower bits of its register, to integer R.
template <class R, class A, class Stored>
Factory integer_conversion() {
  return unary<R, Stored>([](Stored x) -> R { return static_cast<R>(static_cast<A>(x)); });
}

template <class F>
void add_conversions_from_integers(Table& table, const std::string& type) {
  table["cvt.rn" + type + ".s8"] = unary<F, u16>([](u16 x) { return F(int8_t(x)); });
  table["cvt.rn" + type + ".u8"] = unary<F, u16>([](u16 x) { return F(uint8_t(x)); });
  table["cvt.rn" + type + ".s16"] = unary<F, i16>([](i16 x) { return F(x); });
  table["cvt.rn" + type + ".u16"] = unary<F, u16>([](u16 x) { return F(x); });
  table["cvt.rn" + type + ".s32"] = unary<F, i32>([](i32 x) { return F(x); });
  table["cvt.rn" + type + ".u32"] = unary<F, u32>([](u32 x) { return F(x); });
  table["cvt.rn" + type + ".s64"] = unary<F, i64>([](i64 x) { return F(x); });
  table["cvt.rn" + type + ".u64"] = unary<F, u64>([](u64 x) { return F(x); });
  table["cvt.rzi.s32" + type] = unary<i32, F>(truncated<i32, F>);
  table["cvt.rzi.u32" + type] = unary<u32, F>(truncated<u32, F>);
  table["cvt.rzi.s64" + type] = unary<i64, F>(truncated<i64, F>);
  table["cvt.rmi" + type + type] = unary<F, F>([](F x) { return canonical(std::floor(x)); });
}

void add_conversions(Table& table) {
  table["cvt.s16.s8"] = integer_conversion<i16, int8_t, u16>();
  table["cvt.s32.s8"] = integer_conversion<i32, int8_t, u32>();
  table["cvt.s64.s8"] = integer_conversion<i64, int8_t, u32>();
  table["cvt.u16.u8"] = integer_conversion<u16, uint8_t, u16>();
  table["cvt.u32.u8"] = integer_conversion<u32, uint8_t, u32>();
  table["cvt.u64.u8"] = integer_conversion<u64, uint8_t, u32>();
  table["cvt.s32.s16"] = integer_conversion<i32, i16, u16>();
  table["cvt.u32.u16"] = integer_conversion<u32, u16, u16>();
  table["cvt.s64.s16"] = integer_conversion<i64, i16, u16>();
  table["cvt.u64.u16"] = integer_conversion<u64, u16, u16>();
  table["cvt.s64.s32"] = integer_conversion<i64, i32, u32>();
  table["cvt.u64.u32"] = integer_conversion<u64, u32, u32>();
  table["cvt.u16.u32"] = integer_conversion<u16, u16, u32>();
  table["cvt.u16.u64"] = integer_conversion<u16, u16, u64>();
  table["cvt.u32.u64"] = integer_conversion<u32, u32, u64>();
  add_conversions_from_integers<float>(table, ".f32");
  add_conversions_from_integers<double>(table, ".f64");
  table["cvt.f64.f32"] = unary<double, float>([](float x) { return canonical(static_cast<double>(x)); });
  table["cvt.rn.f32.f64"] = unary<float, double>([](double x) { return canonical(static_cast<float>(x)); });
  table["cvt.f32.bf16"] = unary<float, u16>([](u16 x) { return canonical(bfloat16_to_float(x)); });
  table["cvt.f32.f16"] = unary<float, u16>(half_to_float);
  table["cvt.f64.bf16"] = unary<double, u16>([](u16 x) { return canonical(static_cast<double>(bfloat16_to_float(x))); });
  table["cvt.f64.f16"] = unary<double, u16>([](u16 x) { return canonical(static_cast<double>(half_to_float(x))); });
  table["cvt.rn.bf16.f32"] = unary<u16, float>(float_to_bfloat16);
  table["cvt.rn.f16.f32"] = unary<u16, float>(float_to_half);
  // The first source goes to the upper half.
  table["cvt.rn.bf16x2.f32"] = binary<u32, float, float>(
      [](float x, float y) -> u32 { return u32(float_to_bfloat16(x)) << 16 | float_to_bfloat16(y); });
  table["cvt.rn.f16x2.f32"] = binary<u32, float, float>(
      [](float x, float y) -> u32 { return u32(float_to_half(x)) << 16 | float_to_half(y); });
  table["cvt.rna.tf32.f32"] = unary<u32, float>(float_to_tf32);
  table["setp.nan.f16"] = comparison<u16>([](u16 x, u16 y) { return (x & 0x7fff) > 0x7c00 || (y & 0x7fff) > 0x7c00; });
  table["setp.nan.bf16"] = comparison<u16>([](u16 x, u16 y) { return (x & 0x7fff) > 0x7f80 || (y & 0x7fff) > 0x7f80; });
}

Table make_table() {
  Table table;
  add_integers<i16, u16>(table, "16");
  add_integers<i32, u32>(table, "32");
  add_integers<i64, u64>(table, "64");
  add_bits_and_wide_products(table);
  add_floats<float>(table, ".f32");
  add_floats<double>(table, ".f64");
  add_flushing_and_approximate(table);
  add_conversions(table);
  return table;
}

}  // namespace

const std::unordered_map<std::string, Factory>& arithmetic() {
  static const Table table = make_table();
  return table;
}

}  // namespace ptx
