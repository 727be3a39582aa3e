// The C interface that `tests/emulator/library.py` calls.
#include <cstring>

#include "memory.h"
#include "parser.h"

using ptx::machine;

namespace {

std::string text;  // the result of the last call that returns text

const char* keep(std::string said) {
  text = std::move(said);
  return text.c_str();
}

}  // namespace

extern "C" {

// nullptr if the PTX uses something that is not modelled; `ptx_text` then says what.
ptx::Program* ptx_load(const char* source) {
  try {
    return ptx::parse(source).release();
  } catch (const std::exception& error) {
    keep(error.what());
    return nullptr;
  }
}

const char* ptx_text() { return text.c_str(); }

int ptx_parameter_bytes(const ptx::Program* program) { return program->parameter_bytes; }

void ptx_add_region(uint64_t base, uint64_t size, const char* name, int defined) {
  ptx::add_region(base, size, name, defined);
}

void ptx_forget_regions() {
  ptx::regions().clear();
  machine.launch = 0;
}

// Whether all bytes of some memory have been given a defined value.
int ptx_all_defined(uint64_t base, uint64_t size) {
  for (const ptx::Region& region : ptx::regions()) {
    if (base < region.base || base + size > region.base + region.size) continue;
    const uint8_t* first = region.defined.data() + (base - region.base);
    return size == 0 || !std::memchr(first, 0, size);
  }
  return 0;
}

void ptx_launch(ptx::Program* program, const uint8_t* parameters, uint32_t x, uint32_t y, uint32_t z, int threads,
                int shared_bytes, const ptx::Options* options) {
  machine.options = *options;
  ptx::launch(*program, parameters, {x, y, z}, threads, shared_bytes);
}

// The errors found since the last call, one a line: count, tab, error.
const char* ptx_take_findings() {
  std::string lines;
  for (const auto& [finding, count] : machine.findings) lines += std::to_string(count) + "\t" + finding + "\n";
  machine.findings.clear();
  return keep(std::move(lines));
}

// Totals of the last launch, in the order of `Counts`.
void ptx_counts(uint64_t* totals) {
  static_assert(sizeof(ptx::Counts) == 7 * sizeof(uint64_t));
  std::memcpy(totals, &machine.counts, sizeof(ptx::Counts));
}

// Traffic of the last launch, one region a line: bytes loaded, sectors loaded, bytes stored, sectors stored, name.
const char* ptx_traffic() {
  std::string lines;
  for (const ptx::Region& region : ptx::regions()) {
    if (!region.loaded_bytes && !region.stored_bytes) continue;
    for (const uint64_t count :
         {region.loaded_bytes, region.loaded_sectors, region.stored_bytes, region.stored_sectors})
      lines += std::to_string(count) + "\t";
    lines += region.name + "\n";
  }
  return keep(std::move(lines));
}

// How often each instruction ran, one a line: count, line of the PTX, opcode.
const char* ptx_coverage(const ptx::Program* program) {
  std::string lines;
  for (const ptx::Instruction& instruction : program->instructions)
    lines += std::to_string(instruction.executions) + "\t" + std::to_string(instruction.ptx_line) + "\t" +
             instruction.opcode + "\n";
  return keep(std::move(lines));
}

}
