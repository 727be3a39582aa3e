// Matrix products: mma of Ampere, wgmma of Hopper (PTX ISA, "Warp Level Matrix Multiply-Accumulate").
//
// NVIDIA does not document how tensor cores add; MMA-Sim has measured it (Xie and others, arXiv 2511.10909). Products
// and accumulator are aligned to their largest exponent and truncated to a number of fractional bits. They are added
// exactly, and the sum is truncated to float32. Ampere takes half of an instruction's products at a time.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "memory.h"
#include "numbers.h"
#include "parser.h"

namespace ptx {

namespace {

constexpr int kRows = 16;       // rows of A per warp
constexpr int kMostDepth = 16;  // products per element
constexpr int kMostColumns = 256;

struct Format {
  int fraction_bits, lowest_exponent, bytes;
  int depth() const { return 32 / bytes; }  // elements of a row in one instruction
  float value(uint32_t bits) const {
    if (bytes == 4) return std::bit_cast<float>(bits & 0xffffe000u);  // TF32
    return fraction_bits == 7 ? bfloat16_to_float(static_cast<uint16_t>(bits)) : half_to_float(static_cast<uint16_t>(bits));
  }
};

constexpr Format kBfloat16{7, -126, 2}, kHalf{10, -14, 2}, kTf32{10, -126, 4}, kFloat{23, -126, 4};

Format format_named(Operands& operands, const std::string& name) {
  if (name == "bf16") return kBfloat16;
  if (name == "f16") return kHalf;
  if (name == "tf32") return kTf32;
  operands.unsupported("elements");
}

// A number as significand * 2^(exponent - fraction bits); 0 stands for numbers that are not finite.
struct Parts {
  int32_t significand, exponent;
};

Parts parts_of(float value, const Format& format) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const int field = bits >> 23 & 255;
  if (field == 255 || value == 0) return {0, -126};
  int exponent = field ? field - 127 : -126, shift = 23 - format.fraction_bits;
  if (exponent < format.lowest_exponent) {
    shift += format.lowest_exponent - exponent;
    exponent = format.lowest_exponent;
  }
  const auto magnitude = static_cast<int32_t>(((field ? 1u << 23 : 0) | (bits & 0x7fffff)) >> shift);
  return {bits >> 31 ? -magnitude : magnitude, exponent};
}

// One operand of a product: `depth` elements of each of some rows of A, or of some columns of B.
template <int kVectors>
struct Operand {
  int32_t significand[kMostDepth][kVectors], exponent[kMostDepth][kVectors];
  float value[kMostDepth][kVectors];
  bool special[kVectors] = {};  // not finite
  bool unknown[kVectors] = {};  // undefined

  void set(int k, int vector, uint32_t bits, const Format& format) {
    const float x = format.value(bits);
    const Parts parts = parts_of(x, format);
    significand[k][vector] = parts.significand;
    exponent[k][vector] = parts.exponent;
    value[k][vector] = x;
    special[vector] |= !std::isfinite(x);
  }
};

// sum * 2^(top - fraction_bits), truncated to float32.
float cut_off(int64_t sum, int top, int fraction_bits) {
  if (!sum) return 0.0f;
  auto magnitude = static_cast<uint64_t>(sum < 0 ? -sum : sum);
  const int highest = 63 - std::countl_zero(magnitude), exponent = highest + top - fraction_bits;
  if (exponent > 127) return sum < 0 ? -INFINITY : INFINITY;
  const int dropped = exponent < -126 ? -149 - (top - fraction_bits) : highest - 23;
  if (dropped > 0) magnitude = dropped > 63 ? 0 : magnitude >> dropped << dropped;
  const auto result = static_cast<float>(static_cast<double>(magnitude) * power_of_two(top - fraction_bits));
  return sum < 0 ? -result : result;
}

// c += one row of A times B; the products first_k to last_k - 1 of each element are added in one aligned sum.
template <int kVectors>
void add_aligned(const Operand<kRows>& a, int row, const Operand<kVectors>& b, int columns, int first_k, int last_k,
                 int fraction_bits, int operand_fraction_bits, float* c) {
  int32_t top[kVectors];
  int64_t sum[kVectors];
  Parts accumulator[kVectors];
  for (int n = 0; n < columns; ++n) {
    accumulator[n] = parts_of(c[n], kFloat);
    top[n] = accumulator[n].exponent;
  }
  for (int k = first_k; k < last_k; ++k)
    for (int n = 0; n < columns; ++n) top[n] = std::max(top[n], a.exponent[k][row] + b.exponent[k][n]);
  for (int n = 0; n < columns; ++n) {
    const int shift = top[n] - accumulator[n].exponent;
    const int64_t aligned = static_cast<int64_t>(std::abs(accumulator[n].significand)) << (fraction_bits - 23);
    const int64_t kept = shift > 31 ? 0 : aligned >> shift;
    sum[n] = accumulator[n].significand < 0 ? -kept : kept;
  }
  const int widened = fraction_bits - 2 * operand_fraction_bits;
  for (int k = first_k; k < last_k; ++k) {
    const int32_t significand = a.significand[k][row] << widened, exponent = a.exponent[k][row];
    for (int n = 0; n < columns; ++n) {
      const int32_t product = significand * b.significand[k][n];
      const int32_t shift = top[n] - exponent - b.exponent[k][n];
      const int32_t kept = shift > 31 ? 0 : std::abs(product) >> shift;
      sum[n] += product < 0 ? -kept : kept;
    }
  }
  // A sum that an earlier step took to infinity stays there.
  for (int n = 0; n < columns; ++n)
    if (std::isfinite(c[n])) c[n] = cut_off(sum[n], top[n], fraction_bits);
}

template <int kVectors>
float exact_sum(const Operand<kRows>& a, int row, const Operand<kVectors>& b, int n, int depth, float c) {
  long double sum = 0;
  for (int k = 0; k < depth; ++k) sum += static_cast<long double>(a.value[k][row]) * b.value[k][n];
  return canonical(static_cast<float>(sum + c));
}

// c += a row of A times B, as the chosen tensor cores compute it; wgmma exists on Hopper alone.
template <int kVectors>
void multiply_row(const Operand<kRows>& a, int row, const Operand<kVectors>& b, int columns, const Format& format,
                  bool is_wgmma, float* c) {
  const int depth = format.depth();
  if (machine.tensor_cores() == TensorCores::exact) {
    for (int n = 0; n < columns; ++n) c[n] = exact_sum(a, row, b, n, depth, c[n]);
    return;
  }
  // NaN and infinity follow IEEE 754.
  float special[kVectors];
  bool is_special[kVectors];
  for (int n = 0; n < columns; ++n) {
    is_special[n] = a.special[row] || b.special[n] || !std::isfinite(c[n]);
    if (is_special[n]) special[n] = exact_sum(a, row, b, n, depth, c[n]);
  }
  if (is_wgmma || machine.tensor_cores() == TensorCores::hopper) {
    add_aligned(a, row, b, columns, 0, depth, 25, format.fraction_bits, c);
  } else {
    add_aligned(a, row, b, columns, 0, depth / 2, 24, format.fraction_bits, c);
    add_aligned(a, row, b, columns, depth / 2, depth, 24, format.fraction_bits, c);
  }
  for (int n = 0; n < columns; ++n)
    if (is_special[n]) c[n] = special[n];
}

void check_converged(Warp& warp) {
  if (warp.executing != warp.alive) report("collective operation in a diverged warp");
}

void count_product(int columns, int depth) {
  ++machine.counts.matrix_instructions;
  machine.counts.multiply_adds += static_cast<uint64_t>(kRows * columns * depth);
}

// Fragments of A: four registers a lane, of rows g and g + 8, where g = lane / 4 and t = lane % 4.
void read_a(Warp& warp, const std::vector<int>& registers, const Format& format, Operand<kRows>& a) {
  for (int lane = 0; lane < kLanes; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int part = 0; part < 4; ++part) {
      const uint32_t bits = read<uint32_t>(warp, registers[part], lane);
      const int row = g + part % 2 * 8;
      a.unknown[row] |= undefined<uint32_t>(warp, registers[part]) >> lane & 1;
      if (format.bytes == 4) a.set(t + part / 2 * 4, row, bits, format);
      else
        for (int half = 0; half < 2; ++half) a.set(2 * t + half + part / 2 * 8, row, bits >> 16 * half & 0xffff, format);
    }
  }
}

// Fragments of B: two registers a lane, of column g.
void read_b(Warp& warp, const std::vector<int>& registers, const Format& format, Operand<8>& b) {
  for (int lane = 0; lane < kLanes; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int part = 0; part < 2; ++part) {
      const uint32_t bits = read<uint32_t>(warp, registers[part], lane);
      b.unknown[g] |= undefined<uint32_t>(warp, registers[part]) >> lane & 1;
      if (format.bytes == 4) b.set(t + part * 4, g, bits, format);
      else
        for (int half = 0; half < 2; ++half) b.set(2 * t + half + part * 8, g, bits >> 16 * half & 0xffff, format);
    }
  }
}

// The row and column of the element that a lane holds in register `part` of an accumulator.
int row_of(int part, int lane) { return lane / 4 + part / 2 % 2 * 8; }
int column_of(int part, int lane) { return part / 4 * 8 + lane % 4 * 2 + part % 2; }

Execute make_mma(Operands& operands) {
  const auto& parts = operands.parts();  // mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32
  const Format format = format_named(operands, parts[parts.size() - 2]);
  const std::string shape = "m16n8k" + std::to_string(format.depth());
  if (!operands.has(shape) || !operands.has("row") || !operands.has("col") || parts.back() != "f32")
    operands.unsupported("shape");
  const auto d = operands.targets(0, Kind::narrow), ra = operands.sources(1, Kind::narrow),
             rb = operands.sources(2, Kind::narrow), rc = operands.sources(3, Kind::narrow);
  if (d.size() != 4 || ra.size() != 4 || rb.size() != 2 || rc.size() != 4) operands.unsupported("fragments");
  return [=](Warp& warp) {
    check_converged(warp);
    count_product(8, format.depth());
    Operand<kRows> a;
    Operand<8> b;
    read_a(warp, ra, format, a);
    read_b(warp, rb, format, b);
    float c[kRows][8];
    LaneMask unknown[4];
    for (int part = 0; part < 4; ++part) {
      unknown[part] = undefined<uint32_t>(warp, rc[part]);
      for (int lane = 0; lane < kLanes; ++lane)
        c[row_of(part, lane)][column_of(part, lane)] = read<float>(warp, rc[part], lane);
    }
    for (int row = 0; row < kRows; ++row) multiply_row(a, row, b, 8, format, false, c[row]);
    for (int part = 0; part < 4; ++part) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const int row = row_of(part, lane), column = column_of(part, lane);
        write(warp, d[part], lane, c[row][column]);
        unknown[part] |= static_cast<LaneMask>(a.unknown[row] || b.unknown[column]) << lane;
      }
      mark_undefined<uint32_t>(warp, d[part], unknown[part]);
    }
  };
}

// Bytes of a row in one swizzled pattern.
uint32_t pitch_of(uint64_t descriptor) {
  const int mode = static_cast<int>(descriptor >> 62);
  return mode == 1 ? 128 : mode == 2 ? 64 : 32;
}

// Address of 16 bytes of a matrix row in shared memory, swizzled as the descriptor says (PTX ISA, "Matrix Descriptor").
std::optional<uint32_t> swizzled(uint64_t descriptor, int row, int byte) {
  const auto start = static_cast<uint32_t>(descriptor & 0x3fff) << 4;
  const auto stride = static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4;  // between groups of eight rows
  const int mode = static_cast<int>(descriptor >> 62), base_offset = descriptor >> 49 & 7;
  if (mode == 0 || base_offset) return {};
  const uint32_t pitch = pitch_of(descriptor);
  // A row longer than a pitch continues in another pattern, `leading` bytes further. Rows along K are never longer.
  const auto leading = static_cast<uint32_t>(descriptor >> 16 & 0x3fff) << 4;
  const uint32_t address = start + row / 8 * stride + row % 8 * pitch + byte / pitch * leading + byte % pitch;
  return address ^ ((address >> 7 & (pitch / 16 - 1)) << 4);
}

// 16 bytes of a matrix row, or nullopt if they cannot be read. The product keeps a copy, to detect later changes.
std::optional<std::array<uint8_t, 16>> fetch(Warp& warp, uint64_t descriptor, int row, int byte, AsyncProduct& product,
                                             bool& unknown) {
  const auto address = swizzled(descriptor, row, byte);
  if (!address) {
    report("matrix descriptor not understood");
    return {};
  }
  const auto place = locate_shared(warp, *address, 16);
  if (!place) {
    unknown = true;
    return {};
  }
  read_all(*place, stamp(warp, 0));
  unknown |= std::find(place->defined, place->defined + 16, 0) != place->defined + 16;
  std::array<uint8_t, 16> bytes;
  std::memcpy(bytes.data(), &warp.block->shared[*address], 16);
  product.read.emplace_back(*address, bytes);
  return bytes;
}

uint32_t element_of(const std::array<uint8_t, 16>& bytes, int element, const Format& format) {
  uint32_t bits = 0;
  std::memcpy(&bits, &bytes[element * format.bytes], format.bytes);
  return bits;
}

// A vector along K, which is a row in shared memory.
template <int kVectors>
void fetch_row(Warp& warp, uint64_t descriptor, int row, int vector, const Format& format, Operand<kVectors>& operand,
               AsyncProduct& product) {
  const int elements = 16 / format.bytes;
  for (int chunk = 0; chunk < 2; ++chunk) {
    bool unknown = false;
    const auto bytes = fetch(warp, descriptor, row, 16 * chunk, product, unknown);
    operand.unknown[vector] |= unknown;
    if (!bytes) continue;
    for (int element = 0; element < elements; ++element)
      operand.set(chunk * elements + element, vector, element_of(*bytes, element, format), format);
  }
}

// All vectors of a transposed operand: a row in shared memory holds one element of each vector.
template <int kVectors>
void fetch_transposed(Warp& warp, uint64_t descriptor, int vectors, const Format& format, Operand<kVectors>& operand,
                      AsyncProduct& product) {
  const int elements = 16 / format.bytes;
  for (int row = 0; row < format.depth(); ++row) {
    for (int first = 0; first < vectors; first += elements) {
      bool unknown = false;
      const auto bytes = fetch(warp, descriptor, row, first * format.bytes, product, unknown);
      for (int element = 0; element < elements; ++element) {
        operand.unknown[first + element] |= unknown;
        if (bytes) operand.set(row, first + element, element_of(*bytes, element, format), format);
      }
    }
  }
}

// wgmma.mma_async: 16 of the warpgroup's 64 rows for each warp. It runs when it is issued. Until the wait for it, its
// accumulators count as undefined, and the shared memory that it reads must not change.
Execute make_wgmma(Operands& operands) {
  const auto& parts = operands.parts();  // wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16
  const Format format = format_named(operands, parts.back());
  const std::string& shape = parts[4];
  if (shape.rfind("m64n", 0) != 0 || parts[5] != "f32") operands.unsupported("shape");
  const int columns = std::stoi(shape.substr(4));
  const std::vector<int> d = operands.targets(0, Kind::narrow);
  const bool a_in_registers = operands.text(1)[0] == '{';
  const std::vector<int> ra = operands.sources(1, a_in_registers ? Kind::narrow : Kind::wide);
  const int rb = operands.source(2, Kind::wide);
  // Whether to add to the accumulators or to overwrite them: a predicate or a number.
  const bool is_conditional = operands.is_register(3);
  const int condition = is_conditional ? operands.source(3, Kind::predicate) : -1;
  const bool always = !is_conditional && operands.number(3);
  if (static_cast<int>(d.size()) != columns / 2 || operands.text(4) != "1" || operands.text(5) != "1")
    operands.unsupported("scale");
  // Flags for transposing A (unless it is in registers) and B.
  const size_t transposed = a_in_registers ? 6 : 7;
  const bool b_is_transposed = operands.size() > transposed && operands.text(transposed) != "0";
  if (!a_in_registers && operands.size() > 6 && operands.text(6) != "0") operands.unsupported("transposed A");
  return [=](Warp& warp) {
    check_converged(warp);
    count_product(columns, format.depth());
    AsyncProduct product;
    product.instruction = current_index();
    product.accumulators = d;
    Operand<kRows> a;
    static Operand<kMostColumns> b;  // too large for a thread's stack; static is safe, since one launch runs at a time
    std::fill_n(b.special, columns, false);
    std::fill_n(b.unknown, columns, false);
    if (a_in_registers) {
      read_a(warp, ra, format, a);
    } else {
      if (undefined<uint64_t>(warp, ra[0])) report("undefined address");
      for (int row = 0; row < kRows; ++row)
        fetch_row(warp, read<uint64_t>(warp, ra[0], 0), warp.index % 4 * kRows + row, row, format, a, product);
    }
    if (undefined<uint64_t>(warp, rb)) report("undefined address");
    if (b_is_transposed) fetch_transposed(warp, read<uint64_t>(warp, rb, 0), columns, format, b, product);
    for (int column = 0; column < columns && !b_is_transposed; ++column)
      fetch_row(warp, read<uint64_t>(warp, rb, 0), column, column, format, b, product);

    const bool accumulates = is_conditional ? warp.predicate[condition] & 1 : always;
    static float c[kRows][kMostColumns];
    for (int part = 0; part < columns / 2; ++part)
      for (int lane = 0; lane < kLanes; ++lane)
        c[row_of(part, lane)][column_of(part, lane)] = accumulates ? read<float>(warp, d[part], lane) : 0.0f;
    for (int row = 0; row < kRows; ++row) multiply_row(a, row, b, columns, format, true, c[row]);
    for (int part = 0; part < columns / 2; ++part) {
      const auto under_way = warp.undefined_when_done.find(d[part]);
      LaneMask unknown = !accumulates                                       ? 0
                         : under_way != warp.undefined_when_done.end() ? under_way->second
                                                                            : undefined<uint32_t>(warp, d[part]);
      for (int lane = 0; lane < kLanes; ++lane) {
        const int row = row_of(part, lane), column = column_of(part, lane);
        write(warp, d[part], lane, c[row][column]);
        unknown |= static_cast<LaneMask>(a.unknown[row] || b.unknown[column]) << lane;
      }
      warp.undefined_when_done[d[part]] = unknown;
      undefined<uint32_t>(warp, d[part]) = kAllLanes;
    }
    warp.products.open.push_back(std::move(product));
  };
}

void check_unchanged(Warp& warp, const AsyncProduct& product) {
  const std::string with = "with " + describe(machine.program->instructions[product.instruction]);
  for (const auto& [address, bytes] : product.read) {
    if (std::memcmp(&warp.block->shared[address], bytes.data(), bytes.size()))
      report("shared memory changed under a product in flight", with);
    if (machine.options.races)
      for (size_t byte = 0; byte < bytes.size(); ++byte)
        on_read(warp.block->shared_history[address + byte], stamp(warp, 0), true);
  }
}

Execute make_wgmma_wait(Operands& operands) {
  const auto left = static_cast<size_t>(operands.number(0));
  return [=](Warp& warp) {
    auto& groups = warp.products.groups;
    while (groups.size() > left) {
      for (const AsyncProduct& product : groups.front()) check_unchanged(warp, product);
      groups.erase(groups.begin());
    }
    std::map<int, LaneMask> still;
    const auto keep = [&](const std::vector<AsyncProduct>& products) {
      for (const AsyncProduct& product : products)
        for (int reg : product.accumulators) still[reg] = warp.undefined_when_done[reg];
    };
    for (const auto& group : groups) keep(group);
    keep(warp.products.open);
    for (const auto& [reg, unknown] : warp.undefined_when_done)
      if (!still.count(reg)) undefined<uint32_t>(warp, reg) = unknown;
    warp.undefined_when_done = std::move(still);
  };
}

}  // namespace

Execute make_tensor_core(Operands& operands) {
  const std::string& opcode = operands.opcode();
  if (operands.parts()[0] == "mma") return make_mma(operands);
  if (opcode == "wgmma.fence.sync.aligned") return [](Warp&) {};
  if (opcode == "wgmma.commit_group.sync.aligned") return [](Warp& warp) { warp.products.commit(); };
  if (opcode == "wgmma.wait_group.sync.aligned") return make_wgmma_wait(operands);
  if (operands.parts()[1] != "mma_async") operands.unsupported("product");
  return make_wgmma(operands);
}

}  // namespace ptx
