// Parses PTX text statement by statement (PTX ISA, "Syntax"), in the subset that Triton writes.
#include "parser.h"

#include <algorithm>

namespace ptx {

namespace {

std::string trimmed(const std::string& text) {
  const size_t first = text.find_first_not_of(" \t"), last = text.find_last_not_of(" \t");
  return first == std::string::npos ? "" : text.substr(first, last - first + 1);
}

bool starts_with(const std::string& text, const std::string& prefix) { return text.rfind(prefix, 0) == 0; }

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  size_t first = 0, found;
  while ((found = text.find(separator, first)) != std::string::npos) {
    parts.push_back(text.substr(first, found - first));
    first = found + 1;
  }
  parts.push_back(text.substr(first));
  return parts;
}

// Splits operands at commas, but keeps {a, b} and [a + b] whole.
std::vector<std::string> split_operands(const std::string& text) {
  std::vector<std::string> operands;
  std::string operand;
  int depth = 0;
  for (char character : text) {
    depth += (character == '{' || character == '[') - (character == '}' || character == ']');
    if (character == ',' && depth == 0) {
      operands.push_back(trimmed(operand));
      operand.clear();
    } else {
      operand += character;
    }
  }
  if (!trimmed(operand).empty()) operands.push_back(trimmed(operand));
  return operands;
}

uint64_t parse_number(std::string text) {
  if (starts_with(text, "0f") || starts_with(text, "0F") || starts_with(text, "0d") || starts_with(text, "0D"))
    return std::stoull(text.substr(2), nullptr, 16);
  if (text.back() == 'U') text.pop_back();
  return text[0] == '-' ? static_cast<uint64_t>(std::stoll(text, nullptr, 0)) : std::stoull(text, nullptr, 0);
}

}  // namespace

class Parser {
 public:
  explicit Parser(Program& program) : program_(program) {}

  void parse(const std::string& text) {
    std::string pending;
    int line = 0;
    for (const std::string& raw : split(text, '\n')) {
      ++line;
      std::string here = raw;
      // Comments of instructions reach to the end of the line; paths in .file contain no "//".
      if (const size_t comment = here.find("//"); comment != std::string::npos) here.resize(comment);
      here = trimmed(here);
      if (here.empty()) continue;
      if (starts_with(here, ".file")) {
        name_source(here);
      } else if (place_ != Place::body) {
        read_header(here);
      } else if (here == "}") {
        place_ = Place::after;
        break;
      } else if (starts_with(here, ".loc")) {
        sscanf(here.c_str() + 4, "%d %d", &source_file_, &source_line_);
      } else if (here.back() == ':') {
        program_.labels[here.substr(0, here.size() - 1)] = static_cast<int>(program_.instructions.size());
      } else {
        pending += (pending.empty() ? "" : " ") + here;
        size_t end;
        while ((end = pending.find(';')) != std::string::npos) {
          const std::string one = trimmed(pending.substr(0, end));
          pending = trimmed(pending.substr(end + 1));
          if (!one.empty()) read_statement(one, line);
        }
      }
    }
    name_sources_after(text);
    for (const auto& [label, use] : jumps_)
      if (!program_.labels.count(label)) throw Unsupported("no label " + label + " for " + use);
    add_instruction("ret", -1, false, line);
  }

  int named(const std::string& name, Kind kind) const {
    const auto found = registers_.find(name);
    if (found == registers_.end()) throw Unsupported("unknown register " + name);
    if (found->second.second != kind) throw Unsupported("width of register " + name);
    return found->second.first;
  }

  Kind kind(const std::string& name) const {
    const auto found = registers_.find(name);
    if (found == registers_.end()) throw Unsupported("unknown register " + name);
    return found->second.second;
  }

  int allocate(Kind kind) {
    switch (kind) {
      case Kind::predicate: return program_.predicate_registers++;
      case Kind::narrow: return program_.narrow_registers++;
      default: return program_.wide_registers++;
    }
  }

  // A register that holds a number in all lanes.
  int constant(const std::string& text, Kind kind) {
    if (kind == Kind::predicate) throw Unsupported("constant predicate " + text);
    uint64_t bits = text == "global_smem" ? 0 : parse_number(text);
    if (kind == Kind::narrow) bits &= 0xffffffffu;
    const auto key = std::make_pair(kind, bits);
    const auto found = constants_.find(key);
    if (found != constants_.end()) return found->second;
    const int reg = allocate(kind);
    (kind == Kind::wide ? program_.wide_constants : program_.narrow_constants).push_back({reg, bits});
    return constants_[key] = reg;
  }

  int sink(Kind kind) {
    const auto found = sinks_.find(kind);
    return found != sinks_.end() ? found->second : sinks_[kind] = allocate(kind);
  }

  Program& program() { return program_; }
  void jumps_to(const std::string& label, const std::string& use) { jumps_.emplace_back(label, use); }

 private:
  enum class Place { before, parameters, body, after };

  void read_header(const std::string& line) {
    if (const size_t entry = line.find(".entry"); entry != std::string::npos) {
      const std::string name = trimmed(line.substr(entry + 6));
      program_.name = name.substr(0, name.find('('));
      place_ = Place::parameters;
    } else if (place_ == Place::parameters && starts_with(line, ".param")) {
      // .param .u64 .ptr .global .align 1 name,
      const int bytes = std::stoi(split(line, '.')[2].substr(1)) / 8;
      std::string name = line.substr(line.rfind(' ') + 1);
      if (name.back() == ',') name.pop_back();
      program_.parameter_bytes = (program_.parameter_bytes + bytes - 1) / bytes * bytes;
      program_.parameter_offsets[name] = program_.parameter_bytes;
      program_.parameter_bytes += bytes;
    } else if (place_ == Place::parameters && line == "{") {
      place_ = Place::body;
    }
  }

  // .file 1 "/folder" "name.py" or .file 1 "/folder/name.py"
  void name_source(const std::string& line) {
    const auto number = static_cast<size_t>(std::stoi(line.substr(5)));
    std::string path = line.substr(0, line.rfind('"'));
    path = path.substr(path.find_last_of("/\"") + 1);
    if (program_.source_files.size() <= number) program_.source_files.resize(number + 1);
    program_.source_files[number] = path;
  }

  // The .file directives come after the kernel.
  void name_sources_after(const std::string& text) {
    for (const std::string& line : split(text, '\n'))
      if (const std::string here = trimmed(line); starts_with(here, ".file")) name_source(here);
  }

  void read_statement(const std::string& text, int line) {
    try {
      if (starts_with(text, ".reg")) return declare(text);
      if (starts_with(text, ".pragma")) return;
      if (text[0] == '.' || text[0] == '{') throw Unsupported("directive");
      int guard = -1;
      bool negated = false;
      std::string rest = text;
      std::replace(rest.begin(), rest.end(), '\t', ' ');
      if (rest[0] == '@') {
        const size_t end = rest.find(' ');
        negated = rest[1] == '!';
        guard = named(rest.substr(1 + negated, end - 1 - negated), Kind::predicate);
        rest = trimmed(rest.substr(end));
      }
      add_instruction(rest, guard, negated, line);
    } catch (const std::exception& error) {
      throw Unsupported(std::string(error.what()) + " in line " + std::to_string(line) + ": " + text);
    }
  }

  // .reg .b32 %r<100>; or .reg .pred p, q
  void declare(const std::string& text) {
    const size_t dot = text.find('.', 4), space = text.find_first_of(" \t", dot);
    const std::string type = text.substr(dot + 1, space - dot - 1);
    const Kind kind = type == "pred"                     ? Kind::predicate
                      : type.find("64") != std::string::npos ? Kind::wide
                                                             : Kind::narrow;
    for (const std::string& name : split_operands(text.substr(space))) {
      const size_t bracket = name.find('<');
      if (bracket == std::string::npos) {
        registers_[name] = {allocate(kind), kind};
        continue;
      }
      const int count = std::stoi(name.substr(bracket + 1));
      for (int number = 0; number < count; ++number)
        registers_[name.substr(0, bracket) + std::to_string(number)] = {allocate(kind), kind};
    }
  }

  void add_instruction(const std::string& text, int guard, bool negated, int line) {
    const size_t space = text.find(' ');
    Operands operands(*this, text.substr(0, space),
                      space == std::string::npos ? std::vector<std::string>{} : split_operands(text.substr(space)));
    Instruction instruction;
    instruction.guard = guard;
    instruction.guard_negated = negated;
    instruction.opcode = operands.opcode();
    instruction.text = text;
    instruction.ptx_line = line;
    instruction.source_file = source_file_;
    instruction.source_line = source_line_;
    instruction.execute = operands.complete(make(operands));
    program_.instructions.push_back(std::move(instruction));
  }

  Execute make(Operands& operands) {
    const std::string& family = operands.parts()[0];
    if (family == "ld" && operands.parts()[1] == "param") return make_parameter_load(operands);
    if (family == "bra") jumps_to(operands.text(0), operands.opcode());
    static const std::map<std::string, Execute (*)(Operands&)> families = {
        {"ld", make_memory},       {"st", make_memory},       {"red", make_memory},
        {"atom", make_memory},     {"cp", make_memory},       {"ldmatrix", make_memory},
        {"stmatrix", make_memory}, {"shfl", make_collective}, {"vote", make_collective},
        {"redux", make_collective}, {"mma", make_tensor_core}, {"wgmma", make_tensor_core},
        {"mov", make_move},
    };
    if (const auto found = families.find(family); found != families.end()) return found->second(operands);
    if (const auto found = arithmetic().find(operands.opcode()); found != arithmetic().end())
      return found->second(operands);
    return make_control(operands, program_);
  }

  Execute make_parameter_load(Operands& operands) {
    std::string name = operands.text(1);
    name = trimmed(name.substr(1, name.size() - 2));
    int offset = 0;
    if (const size_t plus = name.find('+'); plus != std::string::npos) {
      offset = std::stoi(name.substr(plus + 1));
      name = trimmed(name.substr(0, plus));
    }
    const auto found = program_.parameter_offsets.find(name);
    if (found == program_.parameter_offsets.end()) operands.unsupported("parameter " + name);
    offset += found->second;
    const size_t bytes = static_cast<size_t>(std::stoi(operands.parts().back().substr(1))) / 8;
    const Kind kind = operands.register_kind(0);
    if (kind != Kind::wide && bytes == 8) operands.unsupported("a parameter wider than its register");
    const bool extends_sign = operands.parts().back() == "s32";
    const int target = operands.target(0, kind);
    return [=](Warp& warp) {
      uint64_t value = 0;
      std::copy_n(warp.block->parameters + offset, bytes, reinterpret_cast<uint8_t*>(&value));
      if (kind == Kind::wide) {
        if (extends_sign) value = static_cast<uint64_t>(static_cast<int32_t>(value));
        for_lanes(warp.executing, [&](int lane) { write<uint64_t>(warp, target, lane, value); });
        mark_undefined<uint64_t>(warp, target, 0);
      } else {
        for_lanes(warp.executing, [&](int lane) { write(warp, target, lane, static_cast<uint32_t>(value)); });
        mark_undefined<uint32_t>(warp, target, 0);
      }
    };
  }

  Program& program_;
  Place place_ = Place::before;
  int source_file_ = 0, source_line_ = 0;
  std::unordered_map<std::string, std::pair<int, Kind>> registers_;
  std::map<std::pair<Kind, uint64_t>, int> constants_;
  std::map<Kind, int> sinks_;
  std::vector<std::pair<std::string, std::string>> jumps_;
};

Operands::Operands(Parser& parser, std::string opcode, std::vector<std::string> texts)
    : parser_(parser), opcode_(std::move(opcode)), parts_(split(opcode_, '.')), texts_(std::move(texts)) {}

bool Operands::has(const std::string& part) const {
  return std::find(parts_.begin(), parts_.end(), part) != parts_.end();
}

const std::string& Operands::text(size_t position) const {
  if (position >= texts_.size()) unsupported("too few operands");
  return texts_[position];
}

int Operands::target(size_t position, Kind kind) { return target_named(text(position), kind); }
int Operands::source(size_t position, Kind kind) { return source_named(text(position), kind); }
Kind Operands::register_kind(size_t position) const { return parser_.kind(text(position)); }
int64_t Operands::number(size_t position) const { return static_cast<int64_t>(parse_number(text(position))); }

int Operands::target_named(const std::string& name, Kind kind) {
  return name == "_" ? parser_.sink(kind) : parser_.named(name, kind);
}

int Operands::source_named(const std::string& name, Kind kind) {
  if (name[0] != '%') return parser_.constant(name, kind);
  if (kind != Kind::narrow || parser_.kind(name) != Kind::wide) return parser_.named(name, kind);
  if (parts_[0] != "cvt") unsupported("width of register " + name);
  const int whole = parser_.named(name, Kind::wide), half = parser_.allocate(Kind::narrow);
  before_.push_back([=](Warp& warp) {
    for_lanes(warp.executing, [&](int lane) {
      write(warp, half, lane, static_cast<uint32_t>(read<uint64_t>(warp, whole, lane)));
    });
    mark_undefined<uint32_t>(warp, half, undefined<uint64_t>(warp, whole));
  });
  return half;
}

namespace {

std::vector<std::string> elements_of(const std::string& text) {
  return text[0] == '{' ? split_operands(text.substr(1, text.size() - 2)) : std::vector<std::string>{text};
}

}  // namespace

std::vector<int> Operands::targets(size_t position, Kind kind) {
  std::vector<int> found;
  for (const std::string& name : elements_of(text(position))) found.push_back(target_named(name, kind));
  return found;
}

std::vector<int> Operands::sources(size_t position, Kind kind) {
  std::vector<int> found;
  for (const std::string& name : elements_of(text(position))) found.push_back(source_named(name, kind));
  return found;
}

Address Operands::address(size_t position) {
  std::string inside = text(position);
  if (inside[0] != '[') unsupported("address " + inside);
  inside = trimmed(inside.substr(1, inside.size() - 2));
  Address address;
  if (const size_t plus = inside.find('+'); plus != std::string::npos) {
    address.offset = static_cast<int64_t>(parse_number(trimmed(inside.substr(plus + 1))));
    inside = trimmed(inside.substr(0, plus));
  }
  if (inside[0] == '%') {
    address.wide = parser_.kind(inside) == Kind::wide;
    address.reg = parser_.named(inside, address.wide ? Kind::wide : Kind::narrow);
  } else if (inside != "global_smem") {
    unsupported("address " + inside);
  }
  return address;
}

void Operands::unsupported(const std::string& what) const { throw Unsupported(opcode_ + ": " + what); }

Execute Operands::complete(Execute execute) const {
  if (before_.empty()) return execute;
  return [before = before_, execute](Warp& warp) {
    for (const Execute& one : before) one(warp);
    execute(warp);
  };
}

std::unique_ptr<Program> parse(const std::string& text) {
  auto program = std::make_unique<Program>();
  Parser(*program).parse(text);
  return program;
}

}  // namespace ptx
