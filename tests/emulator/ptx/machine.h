// The machine that runs a kernel, and what all parts share: registers, warps, blocks, instructions and programs.
//
// Names are those of the PTX ISA manual. A warp is interpreted as a whole: a register holds the values of its 32 lanes,
// and a mask says for which lanes the value is undefined. The process has one machine and runs one launch at a time.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <vector>

namespace ptx {

constexpr int kLanes = 32;
using LaneMask = uint32_t;
constexpr LaneMask kAllLanes = ~0u;

template <class Body>
inline void for_lanes(LaneMask lanes, Body body) {
  if (lanes == kAllLanes) {
    for (int lane = 0; lane < kLanes; ++lane) body(lane);  // the compiler vectorises this loop
  } else {
    for (LaneMask rest = lanes; rest; rest &= rest - 1) body(std::countr_zero(rest));
  }
}

template <class Word>
struct RegisterFile {
  std::vector<std::array<Word, kLanes>> values;
  std::vector<LaneMask> undefined;
};

// A copy in flight from global to shared memory: cp.async.
struct AsyncCopy {
  int lane;
  uint32_t destination;
  uint32_t bytes;
  std::array<uint8_t, 16> data;
  bool undefined;
  int instruction;
};

// A product in flight on a tensor core of Hopper: the shared memory it reads, and the accumulators it writes.
struct AsyncProduct {
  std::vector<std::pair<uint32_t, std::array<uint8_t, 16>>> read;
  std::vector<int> accumulators;
  int instruction;
};

// Asynchronous operations of a warp: committed groups, the oldest first, and operations not yet committed.
template <class Operation>
struct AsyncQueue {
  std::vector<std::vector<Operation>> groups;
  std::vector<Operation> open;

  void commit() {
    groups.push_back(std::move(open));
    open.clear();
  }
};

struct Block;
struct Region;

// Lanes of a diverged warp that wait at another program counter.
struct Path {
  int pc;
  LaneMask lanes;
};

struct Warp {
  int index = 0;  // within its block
  Block* block = nullptr;

  RegisterFile<uint32_t> narrow;  // .b16 and .b32
  RegisterFile<uint64_t> wide;    // .b64
  std::vector<LaneMask> predicate, undefined_predicate;

  int pc = 0, next_pc = 0;
  LaneMask alive = 0;      // lanes that have not returned
  LaneMask active = 0;     // of these, the lanes at pc
  LaneMask executing = 0;  // of these, the lanes whose guard lets them run the instruction
  std::vector<Path> elsewhere;
  bool at_barrier = false, done = false;
  bool waits_for_launches = false;  // griddepcontrol.wait is still to come

  AsyncQueue<AsyncCopy> copies;
  AsyncQueue<AsyncProduct> products;
  std::map<int, LaneMask> undefined_when_done;  // by accumulator of a product in flight
  Region* last_region = nullptr;
};

// A narrow or wide register, by the size of T.
template <class T>
inline auto& values(Warp& warp, int reg) {
  if constexpr (sizeof(T) == 8) return warp.wide.values[reg];
  else return warp.narrow.values[reg];
}

template <class T>
inline LaneMask& undefined(Warp& warp, int reg) {
  if constexpr (sizeof(T) == 8) return warp.wide.undefined[reg];
  else return warp.narrow.undefined[reg];
}

template <class T>
inline T from_word(auto word) {
  if constexpr (sizeof(T) == 2) return std::bit_cast<T>(static_cast<uint16_t>(word));
  else return std::bit_cast<T>(word);
}

template <class T>
inline auto to_word(T value) {
  if constexpr (sizeof(T) == 2) return static_cast<uint32_t>(std::bit_cast<uint16_t>(value));
  else if constexpr (sizeof(T) == 4) return std::bit_cast<uint32_t>(value);
  else return std::bit_cast<uint64_t>(value);
}

template <class T>
inline T read(Warp& warp, int reg, int lane) {
  return from_word<T>(values<T>(warp, reg)[lane]);
}

template <class T>
inline void write(Warp& warp, int reg, int lane, T value) {
  values<T>(warp, reg)[lane] = to_word(value);
}

inline void merge(LaneMask& into, LaneMask bits, LaneMask lanes) { into = (into & ~lanes) | (bits & lanes); }

template <class T>
inline void mark_undefined(Warp& warp, int reg, LaneMask lanes) {
  merge(undefined<T>(warp, reg), lanes, warp.executing);
}

inline void write_predicate(Warp& warp, int reg, LaneMask value, LaneMask undefined_lanes) {
  merge(warp.predicate[reg], value, warp.executing);
  merge(warp.undefined_predicate[reg], undefined_lanes, warp.executing);
}

using Execute = std::function<void(Warp&)>;

struct Instruction {
  Execute execute;
  int guard = -1;  // a predicate register; -1 for none
  bool guard_negated = false;
  std::string opcode, text;
  int ptx_line = 0, source_file = 0, source_line = 0;
  uint64_t executions = 0;  // how often warps ran it
};

struct Constant {
  int reg;
  uint64_t bits;
};

struct Program {
  std::string name;
  std::vector<Instruction> instructions;
  std::vector<std::string> source_files;
  std::map<std::string, int> labels;
  std::map<std::string, int> parameter_offsets;
  int parameter_bytes = 0;
  bool waits_for_launches = false;  // with griddepcontrol.wait, since it may start before earlier launches have ended
  int narrow_registers = 0, wide_registers = 0, predicate_registers = 0;
  std::vector<Constant> narrow_constants, wide_constants;
};

// Which thread accessed a piece of memory last, and when: enough to tell whether another access is ordered after it.
struct Stamp {
  uint64_t launch : 11 = 0;  // 0: none
  uint64_t block : 20 = 0;
  uint64_t phase : 20 = 0;  // number of barriers that the block has passed
  uint64_t thread : 9 = 0;
  // For reads: who else has read since the last write, in the same launch or phase. For a write: whether it was atomic.
  uint64_t other_lanes : 1 = 0, other_warps : 1 = 0, other_blocks : 1 = 0, atomic : 1 = 0;
};

struct History {
  Stamp read, write;
  uint32_t read_instruction = 0, write_instruction = 0;
};

struct Block {
  std::array<uint32_t, 3> index{}, grid{};
  uint32_t number = 0;  // within the grid
  uint32_t phase = 0;
  int threads = 0;
  const uint8_t* parameters = nullptr;
  std::vector<uint8_t> shared, shared_defined, shared_in_flight;
  std::vector<History> shared_history;
};

enum class TensorCores { exact = 0, ampere = 1, hopper = 2 };
enum class Approximation { exact = 0, scattered = 1, up = 2, down = 3 };
enum class Order { forward = 0, shuffled = 1, reversed = 2 };

// Same layout as `_Options` in `tests/emulator/library.py`.
struct Options {
  int32_t tensor_cores;
  int32_t approximation;
  int32_t order;    // order of blocks, and of the warps of a block
  int32_t quantum;  // instructions that a warp runs at most before another one's turn; 0: it runs until it waits
  int32_t seed;
  int32_t races;  // whether to look for races
};

// Totals of a launch.
struct Counts {
  uint64_t instructions = 0;         // run by warps
  uint64_t matrix_instructions = 0;  // mma and wgmma, run by warps
  uint64_t multiply_adds = 0;        // in matrix instructions
  uint64_t barriers = 0;             // passed by blocks
  uint64_t atomics = 0;              // of threads
  uint64_t shared_wavefronts = 0;    // passes over the banks of shared memory
  uint64_t bank_conflicts = 0;       // passes that bank conflicts add
};

struct Machine {
  Options options{};
  const Program* program = nullptr;
  const Instruction* current = nullptr;
  uint32_t launch = 0;
  Counts counts;
  std::mt19937 random;
  std::map<std::string, uint64_t> findings;

  TensorCores tensor_cores() const { return static_cast<TensorCores>(options.tensor_cores); }
  Approximation approximation() const { return static_cast<Approximation>(options.approximation); }
  Order order() const { return static_cast<Order>(options.order); }
};

extern Machine machine;

// Records an error of the current instruction; `detail` names the other instruction involved, if any.
void report(const std::string& finding, const std::string& detail = "");
std::string describe(const Instruction& instruction);
int current_index();

void launch(Program& program, const uint8_t* parameters, std::array<uint32_t, 3> grid, int threads, int shared_bytes);

}  // namespace ptx
