// Global and shared memory, byte by byte: whether it is defined, who accessed it last, how much of it a launch moved.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "machine.h"

namespace ptx {

constexpr uint32_t kSectorBytes = 32;  // the unit in which global memory is fetched

// A range of global memory that kernels may access: the memory of a tensor, or of a part of one.
struct Region {
  uint64_t base, size;
  std::string name;
  std::vector<uint8_t> defined;      // per byte
  std::vector<History> history;      // per two bytes
  std::vector<uint32_t> loaded_in, stored_in;  // per sector: the last launch that loaded or stored it
  // For the current launch: bytes, counted as often as requested, and sectors, once each.
  uint64_t loaded_bytes = 0, stored_bytes = 0, loaded_sectors = 0, stored_sectors = 0;
};

std::vector<Region>& regions();
void add_region(uint64_t base, uint64_t size, const std::string& name, bool defined);
void reset_region_counts();

// The location and the state of some bytes of an access.
struct Place {
  uint8_t* bytes;
  uint8_t* defined;
  History* history;  // nullptr if races are not looked for
  int granules;      // number of history entries
  bool is_shared;
};

// Reports an access that is misaligned, out of bounds or to memory still being copied to; nullopt if it cannot be made.
std::optional<Place> locate_shared(Warp& warp, uint64_t address, uint32_t bytes);
std::optional<Place> locate_global(Warp& warp, uint64_t address, uint32_t bytes);

Stamp stamp(const Warp& warp, int lane);
void on_read(History& history, const Stamp& reader, bool is_shared);
void on_write(History& history, const Stamp& writer, bool is_shared, bool same_value, bool atomic = false);
void read_all(const Place& place, const Stamp& reader);

// Counts the passes over the 32 banks that one instruction takes, each of at most 128 bytes.
void count_wavefronts(const std::array<uint32_t, kLanes>& addresses, LaneMask lanes, uint32_t bytes);

}  // namespace ptx
