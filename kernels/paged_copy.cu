// Copies between an engine's paged KV cache and contiguous slots. README.md has the design and its sources, paged_copy.h
// the arguments.
//
// Assumed of a launch: one dimension; blocks of 32 to 512 threads, a multiple of 32; any grid, since every loop strides
// over the grid. A small grid is the point: it bounds the multiprocessors taken from the engine's own kernels. The launch
// bounds keep a block to half of a multiprocessor's registers, so that others fit beside it.
//
// No shared memory, no barriers and no exchange between threads: each byte is read and written by one thread, alone. So
// the order of threads cannot matter, and the same source runs as host C++ under sanitizers (host/).
#include "paged_copy.h"

// Only the loops over what a thread has in flight are unrolled: with the compiler's own choice the image is several times as
// large.
#define UNROLL _Pragma("unroll")
#define NO_UNROLL _Pragma("unroll 1")

namespace kvcache {
namespace {

struct alignas(16) Vector {
  uint32_t x, y, z, w;
};

// Streaming loads and stores ("cs": evicted first): the bytes pass once, and what the engine's kernels keep in the L2 cache
// is worth more. Volatile, so that loads stay where they are written: several in flight before the first store.
// The state space is named because addresses of global memory need no translation, and generic ones are dearer.
template <typename Unit>
__device__ inline Unit load(uint64_t address);
template <typename Unit>
__device__ inline void store(uint64_t address, Unit value);

#if defined(__CUDA_ARCH__)
template <>
__device__ inline Vector load<Vector>(uint64_t address) {
  Vector v;
  asm volatile("ld.global.cs.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(address));
  return v;
}
template <>
__device__ inline uint64_t load<uint64_t>(uint64_t address) {
  uint64_t v;
  asm volatile("ld.global.cs.u64 %0, [%1];" : "=l"(v) : "l"(address));
  return v;
}
template <>
__device__ inline uint32_t load<uint32_t>(uint64_t address) {
  uint32_t v;
  asm volatile("ld.global.cs.u32 %0, [%1];" : "=r"(v) : "l"(address));
  return v;
}
template <>
__device__ inline uint8_t load<uint8_t>(uint64_t address) {
  uint32_t v;  // PTX has no 8-bit registers
  asm volatile("ld.global.cs.u8 %0, [%1];" : "=r"(v) : "l"(address));
  return uint8_t(v);
}
template <>
__device__ inline void store<Vector>(uint64_t address, Vector v) {
  asm volatile("st.global.cs.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}
template <>
__device__ inline void store<uint64_t>(uint64_t address, uint64_t v) {
  asm volatile("st.global.cs.u64 [%0], %1;" ::"l"(address), "l"(v) : "memory");
}
template <>
__device__ inline void store<uint32_t>(uint64_t address, uint32_t v) {
  asm volatile("st.global.cs.u32 [%0], %1;" ::"l"(address), "r"(v) : "memory");
}
template <>
__device__ inline void store<uint8_t>(uint64_t address, uint8_t v) {
  asm volatile("st.global.cs.u8 [%0], %1;" ::"l"(address), "r"(uint32_t(v)) : "memory");
}
#else
// Plain accesses of the unit's own type: UBSan sees an address that the GPU would refuse as misaligned.
template <typename Unit>
__device__ inline Unit load(uint64_t address) {
  return *reinterpret_cast<const Unit*>(address);
}
template <typename Unit>
__device__ inline void store(uint64_t address, Unit value) {
  *reinterpret_cast<Unit*>(address) = value;
}
#endif

// Entry `index` of a table.
template <typename Entry>
__device__ inline const Entry& entry(uint64_t table, uint64_t index) {
  return reinterpret_cast<const Entry*>(table)[index];
}

// This thread's place in its team, its team's place among all.
struct Team {
  uint32_t lane;
  uint32_t index;
  uint32_t count;
};

__device__ inline Team this_team() {
  const uint32_t teams = blockDim.x / TEAM_THREADS;
  return {threadIdx.x % TEAM_THREADS, blockIdx.x * teams + threadIdx.x / TEAM_THREADS, gridDim.x * teams};
}

// Loads that a thread issues before the first store that waits for one. Over a PCIe link a load takes over a microsecond:
// 16 blocks of 512 threads keep 512 KiB on the way, several times what hides the link's latency.
constexpr uint32_t IN_FLIGHT = 4;

// `count` units from `src` to `dst`. The remainder has its loads in flight together as well: most pieces for which these
// kernels are chosen are short.
template <typename Unit>
__device__ inline void copy_units(uint64_t dst, uint64_t src, uint64_t count, uint32_t lane) {
  constexpr uint64_t STEP = uint64_t(TEAM_THREADS) * sizeof(Unit);
  uint64_t at = lane;
  dst += at * sizeof(Unit);
  src += at * sizeof(Unit);
  Unit units[IN_FLIGHT];
  NO_UNROLL
  for (; at + (IN_FLIGHT - 1) * TEAM_THREADS < count; at += IN_FLIGHT * TEAM_THREADS) {
    UNROLL
    for (uint32_t i = 0; i < IN_FLIGHT; i++) units[i] = load<Unit>(src + i * STEP);
    UNROLL
    for (uint32_t i = 0; i < IN_FLIGHT; i++) store<Unit>(dst + i * STEP, units[i]);
    dst += IN_FLIGHT * STEP;
    src += IN_FLIGHT * STEP;
  }
  UNROLL
  for (uint32_t i = 0; i < IN_FLIGHT - 1; i++)
    if (at + i * TEAM_THREADS < count) units[i] = load<Unit>(src + i * STEP);
  UNROLL
  for (uint32_t i = 0; i < IN_FLIGHT - 1; i++)
    if (at + i * TEAM_THREADS < count) store<Unit>(dst + i * STEP, units[i]);
}

// Whole units in the middle, head and tail byte by byte: they are shorter than a unit, so every lane has at most one
// byte of each and one instruction moves them all. (Narrower vectors would take more instructions, not fewer.) Their loads
// come first and their stores last, so that nothing waits for them.
template <typename Unit>
__device__ inline void copy_aligned(uint64_t dst, uint64_t src, uint64_t bytes, uint32_t lane) {
  static_assert(sizeof(Unit) <= TEAM_THREADS, "a lane for each byte of a head or tail");
  uint64_t head = (0 - src) & (sizeof(Unit) - 1);
  head = head < bytes ? head : bytes;
  const uint64_t units = (bytes - head) / sizeof(Unit);
  const uint64_t tail = head + units * sizeof(Unit);
  uint8_t first = 0, last = 0;
  if (lane < head) first = load<uint8_t>(src + lane);
  if (lane < bytes - tail) last = load<uint8_t>(src + tail + lane);
  copy_units<Unit>(dst + head, src + head, units, lane);
  if (lane < head) store<uint8_t>(dst + lane, first);
  if (lane < bytes - tail) store<uint8_t>(dst + tail + lane, last);
}

// Any addresses: as wide as source and destination can be aligned together.
__device__ inline void copy_bytes(uint64_t dst, uint64_t src, uint64_t bytes, uint32_t lane) {
  switch (vector_bytes(src ^ dst)) {
    case 16:
      return copy_aligned<Vector>(dst, src, bytes, lane);
    case 8:
      return copy_aligned<uint64_t>(dst, src, bytes, lane);
    case 4:
      return copy_aligned<uint32_t>(dst, src, bytes, lane);
    default:
      return copy_units<uint8_t>(dst, src, bytes, lane);
  }
}

__device__ inline void copy_chunk(uint64_t dst, uint64_t src, uint64_t bytes, uint32_t chunk, uint32_t chunk_bytes,
                                  uint32_t lane) {
  const Span span = chunk_span(src, bytes, chunk, chunk_bytes);
  copy_bytes(dst + span.begin, src + span.begin, span.end - span.begin, lane);
}

enum class Direction { GATHER, SCATTER };

template <Direction direction>
__device__ inline void copy_pages(const PagedCopy& copy) {
  const Team team = this_team();
  const uint32_t items = copy.layer_count * copy.slot_count * copy.slot_blocks * copy.chunks_per_page;
  NO_UNROLL
  for (uint32_t item = team.index; item < items; item += team.count) {
    const PageChunk at = page_chunk(copy, item);
    const uint32_t block = entry<uint32_t>(copy.blocks, at.entry);
    const LayerPages& layer = entry<LayerPages>(copy.layers, at.layer);
    const uint32_t segment = at.chunk / layer.chunks_per_segment;
    if (block >= layer.block_count || segment >= layer.segments) continue;
    const uint64_t slot = entry<uint64_t>(copy.slots, at.entry / copy.slot_blocks);
    const uint64_t engine_side = engine_segment(layer, block, segment);
    const uint64_t slot_side = slot_segment(layer, slot, at.entry % copy.slot_blocks, segment);
    const bool gather = direction == Direction::GATHER;
    copy_chunk(gather ? slot_side : engine_side, gather ? engine_side : slot_side, layer.segment_bytes,
               at.chunk % layer.chunks_per_segment, layer.chunk_bytes, team.lane);
  }
}

// As IN_FLIGHT. Two, since each needs its own arithmetic: with four the registers do not suffice.
constexpr uint32_t ROW_IN_FLIGHT = 2;

// The units of a row, head by head. Lanes go through all heads as one sequence: a head vector alone is shorter than
// what a team moves at once.
template <typename Unit>
__device__ inline void copy_row(uint64_t dst, uint64_t dst_stride, uint64_t src, uint64_t src_stride, uint32_t heads,
                                uint64_t head_bytes, uint32_t lane) {
  const uint32_t head_units = uint32_t(head_bytes / sizeof(Unit));
  const uint32_t count = heads * head_units;
  Unit units[ROW_IN_FLIGHT];
  uint64_t places[ROW_IN_FLIGHT];
  NO_UNROLL
  for (uint32_t at = lane; at < count; at += ROW_IN_FLIGHT * TEAM_THREADS) {
    UNROLL
    for (uint32_t i = 0; i < ROW_IN_FLIGHT; i++) {
      const uint32_t unit = at + i * TEAM_THREADS;
      if (unit >= count) break;
      const uint32_t head = unit / head_units;
      const uint64_t within = uint64_t(unit % head_units) * sizeof(Unit);
      units[i] = load<Unit>(src + head * src_stride + within);
      places[i] = dst + head * dst_stride + within;
    }
    UNROLL
    for (uint32_t i = 0; i < ROW_IN_FLIGHT; i++)
      if (at + i * TEAM_THREADS < count) store<Unit>(places[i], units[i]);
  }
}

template <Direction direction>
__device__ inline void copy_tokens(const TokenCopy& copy) {
  const Team team = this_team();
  const uint64_t places = uint64_t(copy.page_count) * copy.page_tokens;
  const uint32_t items = copy.layer_count * copy.block_count * copy.block_tokens * copy.kv_count;
  NO_UNROLL
  for (uint32_t item = team.index; item < items; item += team.count) {
    const TokenRow row = token_row(copy, item);
    // A negative entry is a large number here, beyond every page.
    const uint64_t place = uint64_t(
        entry<int64_t>(copy.slot_mapping, uint64_t(row.block) * copy.block_tokens + row.token));
    if (place >= places) continue;
    const uint64_t page = page_row(copy, entry<uint64_t>(copy.bases, uint64_t(copy.first_layer) + row.layer), place, row.kv);
    const uint64_t block = block_row(copy, entry<uint64_t>(copy.blocks, row.block), row);
    const bool gather = direction == Direction::GATHER;
    const uint64_t dst = gather ? block : page, src = gather ? page : block;
    const uint64_t dst_stride = gather ? copy.block_head_stride : copy.page_head_stride;
    const uint64_t src_stride = gather ? copy.page_head_stride : copy.block_head_stride;
    switch (vector_bytes(dst | src | dst_stride | src_stride | copy.head_bytes)) {
      case 16:
        copy_row<Vector>(dst, dst_stride, src, src_stride, copy.heads, copy.head_bytes, team.lane);
        break;
      case 8:
        copy_row<uint64_t>(dst, dst_stride, src, src_stride, copy.heads, copy.head_bytes, team.lane);
        break;
      case 4:
        copy_row<uint32_t>(dst, dst_stride, src, src_stride, copy.heads, copy.head_bytes, team.lane);
        break;
      default:
        copy_row<uint8_t>(dst, dst_stride, src, src_stride, copy.heads, copy.head_bytes, team.lane);
    }
  }
}

}  // namespace
}  // namespace kvcache

extern "C" __global__ void __launch_bounds__(512, 2) kvcache_copy_pieces(const kvcache::PieceCopy copy) {
  using namespace kvcache;
  const Team team = this_team();
  const uint32_t items = copy.piece_count * copy.chunks_per_piece;
  NO_UNROLL
  for (uint32_t item = team.index; item < items; item += team.count) {
    const PieceEntry& piece = entry<PieceEntry>(copy.pieces, item / copy.chunks_per_piece);
    copy_chunk(piece.dst, piece.src, piece.bytes, item % copy.chunks_per_piece, copy.chunk_bytes, team.lane);
  }
}

extern "C" __global__ void __launch_bounds__(512, 2) kvcache_gather_pages(const kvcache::PagedCopy copy) {
  kvcache::copy_pages<kvcache::Direction::GATHER>(copy);
}

extern "C" __global__ void __launch_bounds__(512, 2) kvcache_scatter_pages(const kvcache::PagedCopy copy) {
  kvcache::copy_pages<kvcache::Direction::SCATTER>(copy);
}

extern "C" __global__ void __launch_bounds__(512, 2) kvcache_gather_tokens(const kvcache::TokenCopy copy) {
  kvcache::copy_tokens<kvcache::Direction::GATHER>(copy);
}

extern "C" __global__ void __launch_bounds__(512, 2) kvcache_scatter_tokens(const kvcache::TokenCopy copy) {
  kvcache::copy_tokens<kvcache::Direction::SCATTER>(copy);
}
