// Global and shared memory, byte by byte: what is defined, who touched it last, how much of it a launch moved.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "machine.h"

namespace ptx {

constexpr uint32_t kSectorBytes = 32;  // what global memory is fetched by

// A stretch of global memory that kernels may touch: the memory of a tensor, or of a part of one.
struct Region {
  uint64_t base, size;
  std::string name;
  std::vector<uint8_t> defined;      // by byte
  std::vector<History> history;      // by two bytes
  std::vector<uint32_t> loaded_in, stored_in;  // by sector: the last launch that did
  // Of the current launch: bytes as often as they are asked for, and sectors once each.
  uint64_t loaded_bytes = 0, stored_bytes = 0, loaded_sectors = 0, stored_sectors = 0;
};

std::vector<Region>& regions();
void add_region(uint64_t base, uint64_t size, const std::string& name, bool defined);
void reset_region_counts();

// Where some bytes of an access lie, with what is known of them.
struct Place {
  uint8_t* bytes;
  uint8_t* defined;
  History* history;  // nullptr where races are not looked for
  int granules;      // of history
  bool is_shared;
};

// Reports what is misaligned, out of bounds or still being copied to; nullopt where there is nothing to touch.
std::optional<Place> locate_shared(Warp& warp, uint64_t address, uint32_t bytes);
std::optional<Place> locate_global(Warp& warp, uint64_t address, uint32_t bytes);

Stamp stamp(const Warp& warp, int lane);
void on_read(History& history, const Stamp& reader, bool is_shared);
void on_write(History& history, const Stamp& writer, bool is_shared, bool same_value, bool atomic = false);
void read_all(const Place& place, const Stamp& reader);

// Passes over the 32 banks that one instruction takes: `words` holds 4-byte words by lane, at most 128 bytes a pass.
void count_wavefronts(const std::array<uint32_t, kLanes>& addresses, LaneMask lanes, uint32_t bytes);

}  // namespace ptx
