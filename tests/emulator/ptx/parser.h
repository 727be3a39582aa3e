// Parses PTX text into a program. The tables and functions below make the instructions of each opcode.
#pragma once

#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "machine.h"

namespace ptx {

struct Unsupported : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The register file of an operand.
enum class Kind { predicate, narrow, wide };

// Values of 16 and 32 bits share the narrow registers.
template <class T>
constexpr Kind kind_of = sizeof(T) == 8 ? Kind::wide : Kind::narrow;

// [register + offset], [offset] or [shared memory's start + offset].
struct Address {
  int reg = -1;  // -1: none
  bool wide = false;
  int64_t offset = 0;
};

class Parser;

// The operands of one statement. The function that makes the instruction gets registers, addresses and numbers from it.
class Operands {
 public:
  Operands(Parser& parser, std::string opcode, std::vector<std::string> texts);

  const std::string& opcode() const { return opcode_; }
  const std::vector<std::string>& parts() const { return parts_; }  // "ld", "global", "v4", "b32"
  bool has(const std::string& part) const;
  size_t size() const { return texts_.size(); }
  const std::string& text(size_t position) const;

  int target(size_t position, Kind kind);
  // A register or a number. A narrow read of a wide register gets a copy of its lower half.
  int source(size_t position, Kind kind);
  template <class T>
  int target(size_t position) { return target(position, kind_of<T>); }
  template <class T>
  int source(size_t position) { return source(position, kind_of<T>); }
  std::vector<int> targets(size_t position, Kind kind);  // {a, b, ...}, where _ is a register that is never read
  std::vector<int> sources(size_t position, Kind kind);
  Address address(size_t position);
  int64_t number(size_t position) const;
  bool is_register(size_t position) const { return text(position)[0] == '%'; }
  Kind register_kind(size_t position) const;

  [[noreturn]] void unsupported(const std::string& what) const;
  // The instruction, preceded by the copies that its sources need.
  Execute complete(Execute execute) const;

 private:
  int target_named(const std::string& name, Kind kind);
  int source_named(const std::string& name, Kind kind);

  Parser& parser_;
  std::string opcode_;
  std::vector<std::string> parts_, texts_;
  std::vector<Execute> before_;
};

using Factory = std::function<Execute(Operands&)>;

// By whole opcode.
const std::unordered_map<std::string, Factory>& arithmetic();
// By the opcode's first part.
Execute make_memory(Operands& operands);     // ld, st, red, atom, cp, ldmatrix, stmatrix
Execute make_collective(Operands& operands); // shfl, vote, redux
Execute make_tensor_core(Operands& operands); // mma, wgmma
Execute make_control(Operands& operands, Program& program);  // bra, bar, ret, trap, griddepcontrol
Execute make_move(Operands& operands);       // mov: special registers, {a, b}, predicates, the rest

std::unique_ptr<Program> parse(const std::string& text);

}  // namespace ptx
