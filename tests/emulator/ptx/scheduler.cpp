// Which warp runs, and the program counters of its lanes: branches, barriers, blocks of a grid.
//
// Lanes that diverge at a branch run separately, those with the lowest program counter first, and reconverge when their
// program counters meet. PTX allows this order, and Triton's structured code then reconverges to whole warps.
#include <algorithm>
#include <memory>

#include "memory.h"
#include "parser.h"

namespace ptx {

Machine machine;

int current_index() { return static_cast<int>(machine.current - machine.program->instructions.data()); }

std::string describe(const Instruction& instruction) {
  const auto& files = machine.program->source_files;
  const auto file = static_cast<size_t>(instruction.source_file);
  return (file < files.size() ? files[file] : "?") + ":" + std::to_string(instruction.source_line) + " [PTX line " +
         std::to_string(instruction.ptx_line) + "] " + instruction.text;
}

void report(const std::string& finding, const std::string& detail) {
  const std::string where = machine.program->name + " " + describe(*machine.current);
  ++machine.findings[finding + " | " + where + (detail.empty() ? "" : " | " + detail)];
}

namespace {

Execute make_branch(Operands& operands, const Program& program) {
  // The label may come later in the program, so it is looked up when the branch is first taken.
  return [label = operands.text(0), &labels = program.labels, target = -1](Warp& warp) mutable {
    if (target < 0) target = labels.at(label);
    const LaneMask staying = warp.active & ~warp.executing;
    if (!staying) {
      warp.next_pc = target;
    } else {
      warp.elsewhere.push_back({target, warp.executing});
      warp.active = staying;
    }
  };
}

void leave(Warp& warp) {
  warp.alive &= ~warp.executing;
  warp.active &= ~warp.executing;
}

}  // namespace

Execute make_control(Operands& operands, Program& program) {
  const std::string &family = operands.parts()[0], &opcode = operands.opcode();
  if (family == "bra") return make_branch(operands, program);
  if (family == "ret" || family == "exit") return leave;
  if (family == "trap") {
    return [](Warp& warp) {
      report("trap");
      leave(warp);
    };
  }
  if (opcode == "bar.sync" || opcode == "barrier.sync") {
    if (operands.size() != 1 || operands.text(0) != "0") operands.unsupported("barrier of a part of the block");
    return [](Warp& warp) {
      if (warp.executing != warp.alive) report("barrier in a diverged warp");
      warp.at_barrier = true;
    };
  }
  if (opcode == "griddepcontrol.wait") {
    program.waits_for_launches = true;
    return [](Warp& warp) {
      if (warp.executing != warp.alive) report("wait for earlier launches in a diverged warp");
      warp.waits_for_launches = false;
    };
  }
  if (opcode == "griddepcontrol.launch_dependents") return [](Warp&) {};
  if (family == "membar" || family == "fence") return [](Warp&) {};
  operands.unsupported("no such instruction");
}

namespace {

void choose_path(Warp& warp) {
  if (warp.active) warp.elsewhere.push_back({warp.pc, warp.active});
  if (warp.elsewhere.empty()) {
    warp.done = true;
    return;
  }
  const auto behind = [](const Path& a, const Path& b) { return a.pc < b.pc; };
  warp.pc = std::min_element(warp.elsewhere.begin(), warp.elsewhere.end(), behind)->pc;
  warp.active = 0;
  std::erase_if(warp.elsewhere, [&](const Path& path) {
    if (path.pc == warp.pc) warp.active |= path.lanes;
    return path.pc == warp.pc;
  });
}

void run_warp(Warp& warp, Program& program, int64_t most_instructions) {
  while (!warp.at_barrier && !warp.done && most_instructions-- != 0) {
    Instruction& instruction = program.instructions[warp.pc];
    machine.current = &instruction;
    warp.executing = warp.active;
    warp.next_pc = warp.pc + 1;
    if (instruction.guard >= 0) {
      if (warp.undefined_predicate[instruction.guard] & warp.active) report("undefined guard or branch condition");
      const LaneMask guard = warp.predicate[instruction.guard];
      warp.executing &= instruction.guard_negated ? ~guard : guard;
    }
    if (warp.executing) {
      ++instruction.executions;
      ++machine.counts.instructions;
      instruction.execute(warp);
    }
    warp.pc = warp.next_pc;
    if (!warp.elsewhere.empty() || !warp.active) choose_path(warp);
  }
}

constexpr uint8_t kGarbage = 0xa5;

void reset(Warp& warp, Block& block, const Program& program, int index) {
  warp.index = index;
  warp.block = &block;
  warp.narrow.values.resize(program.narrow_registers);
  warp.wide.values.resize(program.wide_registers);
  warp.narrow.undefined.assign(program.narrow_registers, kAllLanes);
  warp.wide.undefined.assign(program.wide_registers, kAllLanes);
  warp.predicate.assign(program.predicate_registers, 0);
  warp.undefined_predicate.assign(program.predicate_registers, kAllLanes);
  for (const Constant& constant : program.narrow_constants) {
    warp.narrow.values[constant.reg].fill(static_cast<uint32_t>(constant.bits));
    warp.narrow.undefined[constant.reg] = 0;
  }
  for (const Constant& constant : program.wide_constants) {
    warp.wide.values[constant.reg].fill(constant.bits);
    warp.wide.undefined[constant.reg] = 0;
  }
  warp.pc = 0;
  warp.active = warp.alive = kAllLanes;
  warp.elsewhere.clear();
  warp.at_barrier = warp.done = false;
  warp.waits_for_launches = program.waits_for_launches;
  warp.copies = {};
  warp.products = {};
  warp.undefined_when_done.clear();
  warp.last_region = nullptr;
}

template <class Item>
void arrange(std::vector<Item>& items) {
  if (machine.order() == Order::shuffled) std::shuffle(items.begin(), items.end(), machine.random);
  else if (machine.order() == Order::reversed) std::reverse(items.begin(), items.end());
}

void run_block(Block& block, std::vector<Warp>& warps, Program& program) {
  for (size_t index = 0; index < warps.size(); ++index) reset(warps[index], block, program, static_cast<int>(index));
  std::vector<Warp*> turns;
  for (Warp& warp : warps) turns.push_back(&warp);
  for (size_t done = 0; done < warps.size();) {
    arrange(turns);
    for (Warp* warp : turns) {
      if (warp->done || warp->at_barrier) continue;
      const auto quantum = static_cast<uint32_t>(machine.options.quantum);
      run_warp(*warp, program, quantum ? static_cast<int64_t>(machine.random() % quantum) + 1 : -1);
    }
    done = std::count_if(warps.begin(), warps.end(), [](const Warp& warp) { return warp.done; });
    const size_t waiting = std::count_if(warps.begin(), warps.end(), [](const Warp& warp) { return warp.at_barrier; });
    if (waiting == 0 || waiting + done < warps.size()) continue;
    if (done) report("a warp left while others wait at a barrier");
    ++block.phase;
    ++machine.counts.barriers;
    for (Warp& warp : warps) warp.at_barrier = false;
  }
  machine.current = &program.instructions.back();
  for (const Warp& warp : warps)
    if (!warp.copies.open.empty()) report("copies never committed");
}

}  // namespace

void launch(Program& program, const uint8_t* parameters, std::array<uint32_t, 3> grid, int threads, int shared_bytes) {
  machine.program = &program;
  machine.launch = machine.launch % 2047 + 1;
  machine.counts = {};
  reset_region_counts();
  machine.random.seed(static_cast<uint32_t>(machine.options.seed) + machine.launch * 7919u);
  std::vector<Warp> warps(threads / kLanes);
  std::vector<uint32_t> order(static_cast<size_t>(grid[0]) * grid[1] * grid[2]);
  for (size_t number = 0; number < order.size(); ++number) order[number] = static_cast<uint32_t>(number);
  arrange(order);
  Block block;
  block.grid = grid;
  block.threads = threads;
  block.parameters = parameters;
  for (const uint32_t number : order) {
    block.index = {number % grid[0], number / grid[0] % grid[1], number / grid[0] / grid[1]};
    block.number = number & 0xfffff;
    block.phase = 0;
    block.shared.assign(shared_bytes, kGarbage);
    block.shared_defined.assign(shared_bytes, 0);
    block.shared_in_flight.assign(shared_bytes, 0);
    if (machine.options.races) block.shared_history.assign(shared_bytes, History{});
    run_block(block, warps, program);
  }
}

}  // namespace ptx
