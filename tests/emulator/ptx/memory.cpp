// Accesses to memory and their checks; loads, stores, copies, atomics, and the matrix forms of shared memory.
#include "memory.h"

#include <algorithm>
#include <cstring>

#include "parser.h"

namespace ptx {

// ------------------------------------------------------------------------------------------------ regions

namespace {

std::vector<Region> all_regions;

}  // namespace

std::vector<Region>& regions() { return all_regions; }

void add_region(uint64_t base, uint64_t size, const std::string& name, bool defined) {
  Region region{base, size, name, {}, {}, {}, {}};
  region.defined.assign(size, defined);
  region.history.resize(size / 2 + 1);
  const uint64_t sectors = (base + size) / kSectorBytes - base / kSectorBytes + 1;
  region.loaded_in.assign(sectors, 0);
  region.stored_in.assign(sectors, 0);
  all_regions.push_back(std::move(region));
}

void reset_region_counts() {
  for (Region& region : all_regions)
    region.loaded_bytes = region.stored_bytes = region.loaded_sectors = region.stored_sectors = 0;
}

namespace {

Region* find_region(Warp& warp, uint64_t address, uint32_t bytes) {
  const auto holds = [&](const Region& region) {
    return address >= region.base && address + bytes <= region.base + region.size;
  };
  if (warp.last_region && holds(*warp.last_region)) return warp.last_region;
  for (Region& region : all_regions)
    if (holds(region)) return warp.last_region = &region;
  return nullptr;
}

void count_access(Region& region, uint64_t address, uint32_t bytes, bool is_store) {
  (is_store ? region.stored_bytes : region.loaded_bytes) += bytes;
  std::vector<uint32_t>& last = is_store ? region.stored_in : region.loaded_in;
  const uint64_t first_sector = region.base / kSectorBytes;
  for (uint64_t sector = address / kSectorBytes; sector <= (address + bytes - 1) / kSectorBytes; ++sector) {
    if (last[sector - first_sector] == machine.launch) continue;
    last[sector - first_sector] = machine.launch;
    ++(is_store ? region.stored_sectors : region.loaded_sectors);
  }
}

}  // namespace

std::optional<Place> locate_shared(Warp& warp, uint64_t address, uint32_t bytes) {
  Block& block = *warp.block;
  if (address % bytes) {
    report("misaligned access of " + std::to_string(bytes) + " bytes");
    return {};
  }
  if (address + bytes > block.shared.size()) {
    report("shared memory out of bounds");
    return {};
  }
  for (uint32_t byte = 0; byte < bytes; ++byte) {
    if (block.shared_in_flight[address + byte]) {
      report("access to the destination of a copy in flight");
      break;
    }
  }
  History* history = machine.options.races ? &block.shared_history[address] : nullptr;
  return Place{&block.shared[address], &block.shared_defined[address], history, static_cast<int>(bytes), true};
}

std::optional<Place> locate_global(Warp& warp, uint64_t address, uint32_t bytes) {
  if (address % bytes) {
    report("misaligned access of " + std::to_string(bytes) + " bytes");
    return {};
  }
  Region* region = find_region(warp, address, bytes);
  if (!region) {
    report("global memory out of bounds");
    return {};
  }
  if (warp.waits_for_launches) report("global memory before earlier launches are waited for");
  const uint64_t offset = address - region->base;
  History* history = machine.options.races ? &region->history[offset / 2] : nullptr;
  return Place{reinterpret_cast<uint8_t*>(address), &region->defined[offset], history,
               std::max(1, static_cast<int>(bytes) / 2), false};
}

// ------------------------------------------------------------------------------------------------ races

// Two accesses are ordered if they come from one thread, from different launches, or from one block with a barrier
// between them.
namespace {

enum class Relation { ordered, lanes, warps, blocks };

Relation relation(const Stamp& a, const Stamp& b) {
  if (a.launch != b.launch) return Relation::ordered;
  if (a.block != b.block) return Relation::blocks;
  if (a.phase != b.phase || a.thread == b.thread) return Relation::ordered;
  return a.thread / kLanes == b.thread / kLanes ? Relation::lanes : Relation::warps;
}

// The relation of a write to all reads of a granule since its last write, in the writer's launch and phase.
Relation relation_to_readers(const Stamp& readers, const Stamp& writer) {
  const Relation last = relation(readers, writer);
  if (readers.launch != writer.launch) return last;
  if (readers.other_blocks) return Relation::blocks;
  if (readers.block != writer.block || readers.phase != writer.phase) return last;
  if (readers.other_warps) return std::max(last, Relation::warps);
  if (readers.other_lanes) return std::max(last, Relation::lanes);
  return last;
}

void report_race(const std::string& kind, Relation between, bool is_shared, uint32_t other_instruction) {
  static const char* const names[] = {"", "lanes of a warp", "warps", "blocks"};
  const auto& instructions = machine.program->instructions;
  const std::string other =
      other_instruction < instructions.size() ? "with " + describe(instructions[other_instruction]) : "";
  report("race (" + kind + ") between " + names[static_cast<int>(between)] + " in " +
             (is_shared ? "shared" : "global") + " memory",
         other);
}

}  // namespace

Stamp stamp(const Warp& warp, int lane) {
  Stamp now;
  now.launch = machine.launch;
  now.block = warp.block->number;
  now.phase = warp.block->phase;
  now.thread = warp.index * kLanes + lane;
  return now;
}

void on_read(History& history, const Stamp& reader, bool is_shared) {
  if (history.write.launch) {
    const Relation between = relation(history.write, reader);
    if (between != Relation::ordered)
      report_race(history.write.atomic ? "read after atomic" : "read after write", between, is_shared,
                  history.write_instruction);
  }
  Stamp readers = reader;
  const Stamp& before = history.read;
  if (before.launch == reader.launch) {
    readers.other_blocks = before.other_blocks | (before.block != reader.block);
    if (before.block == reader.block && before.phase == reader.phase) {
      const bool same_warp = before.thread / kLanes == reader.thread / kLanes;
      readers.other_warps = before.other_warps | !same_warp;
      readers.other_lanes = before.other_lanes | (same_warp && before.thread != reader.thread);
    }
  }
  history.read = readers;
  history.read_instruction = static_cast<uint32_t>(current_index());
}

void on_write(History& history, const Stamp& writer, bool is_shared, bool same_value, bool atomic) {
  if (history.read.launch) {
    const Relation between = relation_to_readers(history.read, writer);
    if (between != Relation::ordered)
      report_race(same_value ? "write of the same value after read" : "write after read", between, is_shared,
                  history.read_instruction);
  }
  // Triton's replicated layouts make several threads store the same value, which is not reported as a race.
  const bool both_atomic = atomic && history.write.atomic;
  if (history.write.launch && !both_atomic && !same_value) {
    const Relation between = relation(history.write, writer);
    if (between != Relation::ordered) report_race("write after write", between, is_shared, history.write_instruction);
  }
  history.write = writer;
  history.write.atomic = atomic;
  history.write_instruction = static_cast<uint32_t>(current_index());
}

void read_all(const Place& place, const Stamp& reader) {
  if (!place.history) return;
  for (int granule = 0; granule < place.granules; ++granule) on_read(place.history[granule], reader, place.is_shared);
}

namespace {

void write_all(const Place& place, const Stamp& writer, const uint8_t* values, uint32_t bytes) {
  if (!place.history) return;
  const uint32_t size = bytes / place.granules;
  for (int granule = 0; granule < place.granules; ++granule) {
    const bool same = !std::memcmp(place.bytes + granule * size, values + granule * size, size);
    on_write(place.history[granule], writer, place.is_shared, same);
  }
}

}  // namespace

// ------------------------------------------------------------------------------------------------ shared memory's banks

void count_wavefronts(const std::array<uint32_t, kLanes>& addresses, LaneMask lanes, uint32_t bytes) {
  const int lanes_a_pass = bytes <= 4 ? kLanes : 128 / static_cast<int>(bytes);
  for (int first = 0; first < kLanes; first += lanes_a_pass) {
    std::array<std::array<uint32_t, kLanes>, 32> words;
    std::array<int, 32> in_bank{};
    int longest = 0;
    for (int lane = first; lane < first + lanes_a_pass; ++lane) {
      if (!(lanes >> lane & 1)) continue;
      for (uint32_t word = addresses[lane] / 4; word <= (addresses[lane] + bytes - 1) / 4; ++word) {
        auto& here = words[word % 32];
        int& count = in_bank[word % 32];
        if (std::find(here.begin(), here.begin() + count, word) == here.begin() + count) here[count++] = word;
        longest = std::max(longest, count);
      }
    }
    if (longest == 0) continue;
    machine.counts.shared_wavefronts += static_cast<uint64_t>(longest);
    machine.counts.bank_conflicts += static_cast<uint64_t>(longest - 1);
  }
}

// ------------------------------------------------------------------------------------------------ instructions

namespace {

uint64_t address_in(Warp& warp, const Address& address, int lane) {
  const uint64_t offset = static_cast<uint64_t>(address.offset);
  if (address.reg < 0) return offset;
  return offset + (address.wide ? read<uint64_t>(warp, address.reg, lane) : read<uint32_t>(warp, address.reg, lane));
}

void check_address(Warp& warp, const Address& address) {
  if (address.reg < 0) return;
  const LaneMask unknown =
      address.wide ? undefined<uint64_t>(warp, address.reg) : undefined<uint32_t>(warp, address.reg);
  if (unknown & warp.executing) report("undefined address");
}

// The properties of a load or store, from the parts of its opcode.
struct Access {
  bool is_shared;
  uint32_t element_bytes;
  uint32_t elements;
  Kind kind;
  uint32_t bytes() const { return element_bytes * elements; }
};

Access access_of(Operands& operands) {
  static const char* const understood[] = {"shared", "shared::cta", "global", "v2", "v4", "relaxed", "acquire", "release",
                                           "volatile", "weak", "gpu", "cta", "sys", "nc", "ca", "cg", "cs", "wb",
                                           "L1::evict_first", "L1::evict_last", "L1::no_allocate"};
  const auto& parts = operands.parts();
  for (size_t part = 1; part + 1 < parts.size(); ++part)
    if (std::find(std::begin(understood), std::end(understood), parts[part]) == std::end(understood))
      operands.unsupported("qualifier " + parts[part]);
  const bool is_shared = operands.has("shared") || operands.has("shared::cta");
  if (!is_shared && !operands.has("global")) operands.unsupported("state space");
  const uint32_t element_bytes = static_cast<uint32_t>(std::stoi(parts.back().substr(1))) / 8;
  const uint32_t elements = operands.has("v4") ? 4 : operands.has("v2") ? 2 : 1;
  return {is_shared, element_bytes, elements, element_bytes == 8 ? Kind::wide : Kind::narrow};
}

std::optional<Place> locate(Warp& warp, const Access& access, uint64_t address, bool is_store) {
  if (access.is_shared) return locate_shared(warp, address, access.bytes());
  auto place = locate_global(warp, address, access.bytes());
  if (place) count_access(*warp.last_region, address, access.bytes(), is_store);
  return place;
}

void count_shared(Warp& warp, const Access& access, const Address& address) {
  if (!access.is_shared) return;
  std::array<uint32_t, kLanes> addresses{};
  for_lanes(warp.executing, [&](int lane) { addresses[lane] = static_cast<uint32_t>(address_in(warp, address, lane)); });
  count_wavefronts(addresses, warp.executing, access.bytes());
}

Execute make_load(Operands& operands) {
  const Access access = access_of(operands);
  const Address address = operands.address(1);
  const std::vector<int> targets = operands.targets(0, access.kind);
  if (targets.size() != access.elements) operands.unsupported("vector");
  return [=](Warp& warp) {
    check_address(warp, address);
    count_shared(warp, access, address);
    for_lanes(warp.executing, [&](int lane) {
      const auto place = locate(warp, access, address_in(warp, address, lane), false);
      if (place) read_all(*place, stamp(warp, lane));
      for (uint32_t element = 0; element < access.elements; ++element) {
        uint64_t value = ~0ull;
        bool unknown = true;
        if (place) {
          const uint32_t first = element * access.element_bytes;
          value = 0;
          std::memcpy(&value, place->bytes + first, access.element_bytes);
          unknown = std::find(place->defined + first, place->defined + first + access.element_bytes, 0) !=
                    place->defined + first + access.element_bytes;
        }
        const int target = targets[element];
        const LaneMask bit = 1u << lane;
        if (access.kind == Kind::wide) {
          write<uint64_t>(warp, target, lane, value);
          merge(undefined<uint64_t>(warp, target), unknown ? bit : 0, bit);
        } else {
          write(warp, target, lane, static_cast<uint32_t>(value));
          merge(undefined<uint32_t>(warp, target), unknown ? bit : 0, bit);
        }
      }
    });
  };
}

Execute make_store(Operands& operands) {
  const Access access = access_of(operands);
  const Address address = operands.address(0);
  const std::vector<int> sources = operands.sources(1, access.kind);
  if (sources.size() != access.elements) operands.unsupported("vector");
  return [=](Warp& warp) {
    check_address(warp, address);
    count_shared(warp, access, address);
    for_lanes(warp.executing, [&](int lane) {
      const auto place = locate(warp, access, address_in(warp, address, lane), true);
      if (!place) return;
      uint8_t stored[32], defined[32];
      for (uint32_t element = 0; element < access.elements; ++element) {
        const int source = sources[element];
        const bool wide = access.kind == Kind::wide;
        const uint64_t value = wide ? read<uint64_t>(warp, source, lane) : read<uint32_t>(warp, source, lane);
        const LaneMask unknown = wide ? undefined<uint64_t>(warp, source) : undefined<uint32_t>(warp, source);
        std::memcpy(stored + element * access.element_bytes, &value, access.element_bytes);
        std::memset(defined + element * access.element_bytes, !(unknown >> lane & 1), access.element_bytes);
        if ((unknown >> lane & 1) && !access.is_shared) report("undefined value stored to global memory");
      }
      write_all(*place, stamp(warp, lane), stored, access.bytes());
      std::memcpy(place->bytes, stored, access.bytes());
      std::memcpy(place->defined, defined, access.bytes());
    });
  };
}

// red.add and atom.add of integers. These commute, so their order does not matter.
Execute make_atomic(Operands& operands) {
  const bool has_result = operands.parts()[0] == "atom";
  const std::string& type = operands.parts().back();
  if (!operands.has("global") || !operands.has("add") || (type != "u32" && type != "s32"))
    operands.unsupported("atomic operation");
  const int target = has_result ? operands.target<uint32_t>(0) : -1;
  const Address address = operands.address(has_result);
  const int source = operands.source<uint32_t>(1 + has_result);
  return [=](Warp& warp) {
    check_address(warp, address);
    for_lanes(warp.executing, [&](int lane) {
      const uint64_t at = address_in(warp, address, lane);
      const auto place = locate_global(warp, at, 4);
      if (!place) return;
      ++machine.counts.atomics;
      if (place->history)
        for (int granule = 0; granule < place->granules; ++granule)
          on_write(place->history[granule], stamp(warp, lane), false, false, true);
      if (std::find(place->defined, place->defined + 4, 0) != place->defined + 4) report("atomic on undefined memory");
      if (undefined<uint32_t>(warp, source) >> lane & 1) report("atomic of an undefined value");
      uint32_t value;
      std::memcpy(&value, place->bytes, 4);
      if (has_result) {
        write(warp, target, lane, value);
        merge(undefined<uint32_t>(warp, target), 0, 1u << lane);
      }
      value += read<uint32_t>(warp, source, lane);
      std::memcpy(place->bytes, &value, 4);
    });
  };
}

// cp.async.{ca,cg}.shared.global [to], [from], bytes{, bytes to read: the others become 0};
Execute make_async_copy(Operands& operands) {
  const Address to = operands.address(0), from = operands.address(1);
  const auto bytes = static_cast<uint32_t>(operands.number(2));
  const int taken = operands.size() > 3 ? operands.source<uint32_t>(3) : -1;
  if (to.reg < 0 || to.wide || !from.wide) operands.unsupported("address");
  return [=](Warp& warp) {
    check_address(warp, to);
    check_address(warp, from);
    if (taken >= 0 && undefined<uint32_t>(warp, taken) & warp.executing) report("undefined size of a copy");
    count_shared(warp, Access{true, bytes, 1, Kind::narrow}, to);
    Block& block = *warp.block;
    for_lanes(warp.executing, [&](int lane) {
      const auto destination = static_cast<uint32_t>(address_in(warp, to, lane));
      const uint64_t source = address_in(warp, from, lane);
      const auto there = locate_shared(warp, destination, bytes);
      if (!there) return;
      AsyncCopy copy{lane, destination, bytes, {}, false, current_index()};
      const uint32_t read_bytes = taken < 0 ? bytes : std::min(bytes, read<uint32_t>(warp, taken, lane));
      if (read_bytes) {
        if (source % bytes) return report("misaligned access of " + std::to_string(bytes) + " bytes");
        const auto here = locate_global(warp, source, read_bytes);
        if (!here) return;
        count_access(*warp.last_region, source, read_bytes, false);
        std::memcpy(copy.data.data(), here->bytes, read_bytes);
        copy.undefined = std::find(here->defined, here->defined + read_bytes, 0) != here->defined + read_bytes;
        read_all(*here, stamp(warp, lane));
      }
      if (there->history)
        for (uint32_t byte = 0; byte < bytes; ++byte) on_write(there->history[byte], stamp(warp, lane), true, false);
      for (uint32_t byte = destination; byte < destination + bytes; ++byte) {
        ++block.shared_in_flight[byte];
        block.shared_defined[byte] = 0;
        block.shared[byte] = 0xa5;
      }
      warp.copies.open.push_back(copy);
    });
  };
}

void land(Warp& warp, std::vector<AsyncCopy>& group) {
  Block& block = *warp.block;
  for (const AsyncCopy& copy : group) {
    std::memcpy(&block.shared[copy.destination], copy.data.data(), copy.bytes);
    for (uint32_t byte = copy.destination; byte < copy.destination + copy.bytes; ++byte) {
      --block.shared_in_flight[byte];
      block.shared_defined[byte] = !copy.undefined;
      // Counts as a write at the wait, so other threads may read only after a later barrier.
      if (machine.options.races) {
        block.shared_history[byte].write = stamp(warp, copy.lane);
        block.shared_history[byte].write_instruction = static_cast<uint32_t>(copy.instruction);
      }
    }
  }
  group.clear();
}

void check_converged(Warp& warp, const char* what) {
  if (warp.executing != warp.alive) report(std::string(what) + " in a diverged warp");
}

Execute make_copy_control(Operands& operands) {
  const std::string& what = operands.opcode();
  if (what == "cp.async.commit_group") {
    return [](Warp& warp) {
      check_converged(warp, "commit of copies");
      warp.copies.commit();
    };
  }
  const bool all = what == "cp.async.wait_all";
  if (!all && what != "cp.async.wait_group") operands.unsupported("copy");
  const auto left = static_cast<size_t>(all ? 0 : operands.number(0));
  return [=](Warp& warp) {
    check_converged(warp, "wait for copies");
    auto& groups = warp.copies.groups;
    while (groups.size() > left) {
      land(warp, groups.front());
      groups.erase(groups.begin());
    }
    if (all) land(warp, warp.copies.open);
  };
}

// ldmatrix and stmatrix: up to four matrices of 8 x 8 halves. Lane 8 m + r gives the address of row r of matrix m. Lane
// l holds elements (l / 4, 2 (l % 4)) and (l / 4, 2 (l % 4) + 1) of each, or of its transpose with .trans.
struct Matrices {
  int count;
  bool transposed;
  Address address;
  std::vector<int> registers;
};

Matrices matrices_of(Operands& operands, bool is_load) {
  Matrices matrices;
  matrices.count = operands.has("x4") ? 4 : operands.has("x2") ? 2 : 1;
  matrices.transposed = operands.has("trans");
  matrices.address = operands.address(is_load);
  matrices.registers = is_load ? operands.targets(0, Kind::narrow) : operands.sources(1, Kind::narrow);
  if (static_cast<int>(matrices.registers.size()) != matrices.count) operands.unsupported("matrices");
  return matrices;
}

void begin_matrices(Warp& warp, const Matrices& matrices) {
  if (warp.executing != warp.alive) report("collective operation in a diverged warp");
  check_address(warp, matrices.address);
  std::array<uint32_t, kLanes> addresses{};
  for (int lane = 0; lane < kLanes; ++lane)
    addresses[lane] = static_cast<uint32_t>(address_in(warp, matrices.address, lane));
  const LaneMask rows = matrices.count == 4 ? kAllLanes : (1u << 8 * matrices.count) - 1;
  count_wavefronts(addresses, rows, 16);
}

Execute make_matrix_load(Operands& operands) {
  const Matrices matrices = matrices_of(operands, true);
  return [=](Warp& warp) {
    begin_matrices(warp, matrices);
    for (int matrix = 0; matrix < matrices.count; ++matrix) {
      uint16_t elements[8][8];
      bool unknown[8][8];
      for (int row = 0; row < 8; ++row) {
        const int lane = 8 * matrix + row;
        const auto place = locate_shared(warp, address_in(warp, matrices.address, lane), 16);
        std::fill_n(unknown[row], 8, true);
        std::fill_n(elements[row], 8, uint16_t{0xffff});
        if (!place) continue;
        read_all(*place, stamp(warp, lane));
        std::memcpy(elements[row], place->bytes, 16);
        for (int column = 0; column < 8; ++column)
          unknown[row][column] = !(place->defined[2 * column] && place->defined[2 * column + 1]);
      }
      LaneMask unknown_lanes = 0;
      for (int lane = 0; lane < kLanes; ++lane) {
        const int outer = lane / 4, inner = 2 * (lane % 4);
        uint32_t pair = 0;
        for (int half = 0; half < 2; ++half) {
          const int row = matrices.transposed ? inner + half : outer;
          const int column = matrices.transposed ? outer : inner + half;
          pair |= static_cast<uint32_t>(elements[row][column]) << 16 * half;
          unknown_lanes |= static_cast<LaneMask>(unknown[row][column]) << lane;
        }
        write(warp, matrices.registers[matrix], lane, pair);
      }
      mark_undefined<uint32_t>(warp, matrices.registers[matrix], unknown_lanes);
    }
  };
}

Execute make_matrix_store(Operands& operands) {
  const Matrices matrices = matrices_of(operands, false);
  return [=](Warp& warp) {
    begin_matrices(warp, matrices);
    for (int matrix = 0; matrix < matrices.count; ++matrix) {
      const int source = matrices.registers[matrix];
      for (int row = 0; row < 8; ++row) {
        const int address_lane = 8 * matrix + row;
        const auto place = locate_shared(warp, address_in(warp, matrices.address, address_lane), 16);
        if (!place) continue;
        uint16_t elements[8];
        uint8_t defined[16];
        for (int column = 0; column < 8; ++column) {
          const int lane = matrices.transposed ? column * 4 + row / 2 : row * 4 + column / 2;
          const int half = matrices.transposed ? row % 2 : column % 2;
          elements[column] = static_cast<uint16_t>(read<uint32_t>(warp, source, lane) >> 16 * half);
          const bool known = !(undefined<uint32_t>(warp, source) >> lane & 1);
          defined[2 * column] = defined[2 * column + 1] = known;
        }
        write_all(*place, stamp(warp, address_lane), reinterpret_cast<const uint8_t*>(elements), 16);
        std::memcpy(place->bytes, elements, 16);
        std::memcpy(place->defined, defined, 16);
      }
    }
  };
}

}  // namespace

Execute make_memory(Operands& operands) {
  const std::string& family = operands.parts()[0];
  if (family == "ld") return make_load(operands);
  if (family == "st") return make_store(operands);
  if (family == "red" || family == "atom") return make_atomic(operands);
  if (family == "ldmatrix") return make_matrix_load(operands);
  if (family == "stmatrix") return make_matrix_store(operands);
  if (operands.has("shared") && operands.has("global") && operands.parts()[1] == "async") return make_async_copy(operands);
  return make_copy_control(operands);
}

}  // namespace ptx
