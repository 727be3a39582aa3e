// Exchanges between the lanes of a warp, and reads of special registers: shfl, vote, redux, mov.
#include "parser.h"

namespace ptx {

namespace {

// Requires the whole warp to take part: `members` is the register with the instruction's mask of lanes.
void check_members(Warp& warp, int members) {
  if (warp.executing != warp.alive) report("collective operation in a diverged warp");
  for_lanes(warp.executing, [&](int lane) {
    if (read<uint32_t>(warp, members, lane) != kAllLanes) report("collective operation of a part of the warp");
  });
}

// shfl.sync.{up,down,bfly,idx}.b32 d{|p}, a, b, c, mask; c holds a clamp and a mask of segments.
Execute make_shuffle(Operands& operands) {
  const std::string mode = operands.parts()[2];
  if (operands.text(0).find('|') != std::string::npos) operands.unsupported("shuffle with a predicate");
  const int d = operands.target<uint32_t>(0), a = operands.source<uint32_t>(1), b = operands.source<uint32_t>(2),
            c = operands.source<uint32_t>(3);
  const int members = operands.source<uint32_t>(4);
  return [=](Warp& warp) {
    check_members(warp, members);
    std::array<uint32_t, kLanes> received{};
    LaneMask unknown = 0;
    for_lanes(warp.executing, [&](int lane) {
      const int distance = static_cast<int>(read<uint32_t>(warp, b, lane) & 31);
      const int clamp = static_cast<int>(read<uint32_t>(warp, c, lane) & 31);
      const int segment = static_cast<int>(read<uint32_t>(warp, c, lane) >> 8 & 31);
      const int first = lane & segment, last = first | (clamp & ~segment);
      int from;
      if (mode == "up") from = lane - distance;
      else if (mode == "down") from = lane + distance;
      else if (mode == "bfly") from = lane ^ distance;
      else from = first | (distance & ~segment);
      // For up, the clamp is the lower limit.
      if (mode == "up" ? from < last : from > last) from = lane;
      if (!(warp.executing >> from & 1)) report("shuffle from an inactive lane");
      received[lane] = read<uint32_t>(warp, a, from);
      unknown |= (undefined<uint32_t>(warp, a) >> from & 1) << lane;
    });
    for_lanes(warp.executing, [&](int lane) { write(warp, d, lane, received[lane]); });
    mark_undefined<uint32_t>(warp, d, unknown);
  };
}

template <class T, class F>
Execute make_reduction(Operands& operands, F combine) {
  const int d = operands.target<T>(0), a = operands.source<T>(1);
  const int members = operands.source<uint32_t>(2);
  return [=](Warp& warp) {
    check_members(warp, members);
    T total{};
    bool first = true;
    for_lanes(warp.executing, [&](int lane) {
      const T value = read<T>(warp, a, lane);
      total = first ? value : combine(total, value);
      first = false;
    });
    for_lanes(warp.executing, [&](int lane) { write(warp, d, lane, total); });
    mark_undefined<T>(warp, d, undefined<T>(warp, a) & warp.executing ? kAllLanes : 0);
  };
}

// redux.sync.op.type d, a, mask
Execute make_redux(Operands& operands) {
  const std::string &operation = operands.parts()[2], &type = operands.parts()[3];
  using u32 = uint32_t;
  using i32 = int32_t;
  if (operation == "add") return make_reduction<u32>(operands, [](u32 x, u32 y) { return x + y; });
  if (operation == "and") return make_reduction<u32>(operands, [](u32 x, u32 y) { return x & y; });
  if (operation == "or") return make_reduction<u32>(operands, [](u32 x, u32 y) { return x | y; });
  if (operation == "xor") return make_reduction<u32>(operands, [](u32 x, u32 y) { return x ^ y; });
  if (operation == "min" && type == "s32") return make_reduction<i32>(operands, [](i32 x, i32 y) { return x < y ? x : y; });
  if (operation == "max" && type == "s32") return make_reduction<i32>(operands, [](i32 x, i32 y) { return x > y ? x : y; });
  if (operation == "min" && type == "u32") return make_reduction<u32>(operands, [](u32 x, u32 y) { return x < y ? x : y; });
  if (operation == "max" && type == "u32") return make_reduction<u32>(operands, [](u32 x, u32 y) { return x > y ? x : y; });
  operands.unsupported("reduction");
}

// vote.sync.{ballot.b32, any.pred, all.pred} d, a, mask
Execute make_vote(Operands& operands) {
  const std::string mode = operands.parts()[2];
  const bool ballot = mode == "ballot";
  if (!ballot && mode != "any" && mode != "all") operands.unsupported("vote");
  const int d = operands.target(0, ballot ? Kind::narrow : Kind::predicate), a = operands.source(1, Kind::predicate);
  const int members = operands.source<uint32_t>(2);
  return [=](Warp& warp) {
    check_members(warp, members);
    const LaneMask votes = warp.predicate[a] & warp.executing;
    const LaneMask unknown = warp.undefined_predicate[a] & warp.executing ? kAllLanes : 0;
    if (ballot) {
      for_lanes(warp.executing, [&](int lane) { write(warp, d, lane, votes); });
      mark_undefined<uint32_t>(warp, d, unknown);
    } else {
      const bool result = mode == "any" ? votes != 0 : votes == warp.executing;
      write_predicate(warp, d, result ? kAllLanes : 0, unknown);
    }
  };
}

using Special = std::function<uint32_t(const Warp&, int lane)>;

// Read-only special registers (PTX ISA, "Special Registers").
const std::map<std::string, Special>& special_registers() {
  static const std::map<std::string, Special> table = {
      {"%tid.x", [](const Warp& warp, int lane) { return static_cast<uint32_t>(warp.index * kLanes + lane); }},
      {"%tid.y", [](const Warp&, int) { return 0u; }},
      {"%tid.z", [](const Warp&, int) { return 0u; }},
      {"%laneid", [](const Warp&, int lane) { return static_cast<uint32_t>(lane); }},
      {"%ntid.x", [](const Warp& warp, int) { return static_cast<uint32_t>(warp.block->threads); }},
      {"%ctaid.x", [](const Warp& warp, int) { return warp.block->index[0]; }},
      {"%ctaid.y", [](const Warp& warp, int) { return warp.block->index[1]; }},
      {"%ctaid.z", [](const Warp& warp, int) { return warp.block->index[2]; }},
      {"%nctaid.x", [](const Warp& warp, int) { return warp.block->grid[0]; }},
      {"%nctaid.y", [](const Warp& warp, int) { return warp.block->grid[1]; }},
      {"%nctaid.z", [](const Warp& warp, int) { return warp.block->grid[2]; }},
  };
  return table;
}

Execute make_predicate_move(Operands& operands) {
  const int d = operands.target(0, Kind::predicate);
  if (!operands.is_register(1)) {
    const LaneMask value = operands.number(1) ? kAllLanes : 0;
    return [=](Warp& warp) { write_predicate(warp, d, value, 0); };
  }
  const int a = operands.source(1, Kind::predicate);
  return [=](Warp& warp) { write_predicate(warp, d, warp.predicate[a], warp.undefined_predicate[a]); };
}

// mov.b64 {lower, ..., upper}, whole
Execute make_unpack(Operands& operands, int bits) {
  const std::vector<int> parts = operands.targets(0, Kind::narrow);
  const Kind kind = bits == 64 ? Kind::wide : Kind::narrow;
  const int whole = operands.source(1, kind), part_bits = bits / static_cast<int>(parts.size());
  return [=](Warp& warp) {
    std::array<uint64_t, kLanes> value{};
    const bool wide = kind == Kind::wide;
    for_lanes(warp.executing, [&](int lane) {
      value[lane] = wide ? read<uint64_t>(warp, whole, lane) : read<uint32_t>(warp, whole, lane);
    });
    const LaneMask unknown = wide ? undefined<uint64_t>(warp, whole) : undefined<uint32_t>(warp, whole);
    for (size_t part = 0; part < parts.size(); ++part) {
      for_lanes(warp.executing, [&](int lane) {
        const uint64_t shifted = value[lane] >> part_bits * part;
        write(warp, parts[part], lane, static_cast<uint32_t>(part_bits == 32 ? shifted : shifted & 0xffff));
      });
      mark_undefined<uint32_t>(warp, parts[part], unknown);
    }
  };
}

// mov.b64 whole, {lower, ..., upper}
Execute make_pack(Operands& operands, int bits) {
  const std::vector<int> parts = operands.sources(1, Kind::narrow);
  const Kind kind = bits == 64 ? Kind::wide : Kind::narrow;
  const int whole = operands.target(0, kind), part_bits = bits / static_cast<int>(parts.size());
  return [=](Warp& warp) {
    std::array<uint64_t, kLanes> value{};
    LaneMask unknown = 0;
    for (size_t part = 0; part < parts.size(); ++part) {
      for_lanes(warp.executing, [&](int lane) {
        const uint64_t here = read<uint32_t>(warp, parts[part], lane);
        value[lane] |= (part_bits == 32 ? here : here & 0xffff) << part_bits * part;
      });
      unknown |= undefined<uint32_t>(warp, parts[part]);
    }
    if (kind == Kind::wide) {
      for_lanes(warp.executing, [&](int lane) { write<uint64_t>(warp, whole, lane, value[lane]); });
      mark_undefined<uint64_t>(warp, whole, unknown);
    } else {
      for_lanes(warp.executing, [&](int lane) { write(warp, whole, lane, static_cast<uint32_t>(value[lane])); });
      mark_undefined<uint32_t>(warp, whole, unknown);
    }
  };
}

}  // namespace

Execute make_collective(Operands& operands) {
  const std::string& family = operands.parts()[0];
  if (family == "shfl") return make_shuffle(operands);
  if (family == "vote") return make_vote(operands);
  return make_redux(operands);
}

Execute make_move(Operands& operands) {
  const std::string& type = operands.parts()[1];
  if (type == "pred") return make_predicate_move(operands);
  if (operands.text(0)[0] == '{') return make_unpack(operands, std::stoi(type.substr(1)));
  if (operands.text(1)[0] == '{') return make_pack(operands, std::stoi(type.substr(1)));
  if (const auto found = special_registers().find(operands.text(1)); found != special_registers().end()) {
    const int d = operands.target<uint32_t>(0);
    return [d, value = found->second](Warp& warp) {
      for_lanes(warp.executing, [&](int lane) { write(warp, d, lane, value(warp, lane)); });
      mark_undefined<uint32_t>(warp, d, 0);
    };
  }
  const auto found = arithmetic().find(operands.opcode());
  if (found == arithmetic().end()) operands.unsupported("no such instruction");
  return found->second(operands);
}

}  // namespace ptx
