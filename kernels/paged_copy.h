// What the copy kernels are told, and which bytes each of their threads moves.
//
// The structs are the kernels' ABI: kvcache-cuda/src/kernels/ has the same ones as #[repr(C)] and fills them. Little
// endian, natural alignment, no hidden padding; the assertions below hold both sides to the same offsets. An address is
// a 64-bit number that the GPU can dereference: of device memory, or the device's address of mapped host memory.
//
// Tables lie in memory that the GPU reads, 8-byte aligned, unchanged until the kernel has ended. Everything here is
// checked on the host, where an error can be reported; the kernels only leave alone the blocks that no table has.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#define KVCACHE_HD __host__ __device__ __forceinline__
#else
#define KVCACHE_HD inline
#endif

namespace kvcache {

// Threads that work together on one item: a warp, so that one vector instruction covers 512 contiguous bytes. Blocks of
// threads are whole teams. The threads of a team share arithmetic only: they neither wait for nor talk to each other.
constexpr uint32_t TEAM_THREADS = 32;

// More items than this are refused on the host: item + stride then stays below 2^32, and 32-bit divisions suffice.
constexpr uint32_t ITEMS_MAX = 1u << 31;

// ---- Pieces: any bytes to anywhere -------------------------------------------------------------------------------

// One contiguous copy. Any alignment; 0 bytes copy nothing.
struct PieceEntry {
  uint64_t src;
  uint64_t dst;
  uint64_t bytes;
};

// kvcache_copy_pieces. An item is one chunk of one piece.
struct PieceCopy {
  uint64_t pieces;            // address of PieceEntry[piece_count]
  uint32_t piece_count;       //
  uint32_t chunks_per_piece;  // chunks of the largest piece, at least 1
  uint32_t chunk_bytes;       // a multiple of 16, at least 16
  uint32_t reserved;          // 0
};

// ---- Pages: an engine's paged KV cache and contiguous slots ------------------------------------------------------

// One layer: its pages in the engine's tensor and its place in a slot. A page is `segments` runs of bytes, a layout with
// the heads outside of the blocks for example; in a slot its runs are contiguous, and so are a slot's pages.
struct LayerPages {
  uint64_t base;                // address of block 0
  uint64_t block_stride;        // bytes from one block to the next
  uint64_t segment_stride;      // bytes from one run of a page to the next
  uint64_t segment_bytes;       // bytes of a run
  uint64_t slot_offset;         // bytes from the start of a slot to this layer's first page
  uint32_t segments;            // runs of a page
  uint32_t block_count;         // blocks in the tensor
  uint32_t chunk_bytes;         // as in PieceCopy
  uint32_t chunks_per_segment;  // segment_bytes / chunk_bytes, rounded up, at least 1
};

// kvcache_gather_pages (engine to slots) and kvcache_scatter_pages (slots to engine). An item is one chunk of a page of
// one layer, layers outermost. All layers in one launch, or one layer: `layers` then points to it and layer_count is 1,
// with the other tables as they are.
struct PagedCopy {
  uint64_t layers;          // address of LayerPages[layer_count]
  uint64_t slots;           // address of uint64_t[slot_count]: where each slot starts
  uint64_t blocks;          // address of uint32_t[slot_count][slot_blocks]: block ids; 2^32-1, or any that the layer lacks: skipped
  uint32_t layer_count;     //
  uint32_t slot_count;      //
  uint32_t slot_blocks;     // engine blocks in a slot
  uint32_t chunks_per_page; // largest segments * chunks_per_segment of the layers, at least 1
};

// ---- Tokens: between layouts -------------------------------------------------------------------------------------

// kvcache_gather_tokens (engine to blocks) and kvcache_scatter_tokens (blocks to engine): the head vectors of tokens move
// between an engine's pages and contiguous blocks of another layout, LCND [layers][K,V][tokens][heads, dim] or NCLD
// [tokens][K,V][layers][heads, dim] for example. Bytes of a head vector keep their order. Pages and blocks may hold
// different numbers of tokens. An item is all heads of one token, K or V, in one layer.
struct TokenCopy {
  uint64_t bases;               // address of uint64_t[first_layer + layer_count]: page 0 of each layer
  uint64_t slot_mapping;        // address of int64_t[block_count][block_tokens]: page * page_tokens + place in the page, as
                                // attention kernels take it; negative, or beyond the last page: skipped
  uint64_t blocks;              // address of uint64_t[block_count]: where each block starts
  uint64_t page_stride;         // engine: bytes from page to page,
  uint64_t page_kv_stride;      //   from K to V,
  uint64_t page_token_stride;   //   from token to token,
  uint64_t page_head_stride;    //   from head to head
  uint64_t block_layer_stride;  // block: bytes from layer to layer,
  uint64_t block_kv_stride;     //   and likewise
  uint64_t block_token_stride;  //
  uint64_t block_head_stride;   //
  uint64_t head_bytes;          // bytes of a head vector: dim * bytes of an element
  uint32_t first_layer;         // layers first_layer .. first_layer + layer_count are copied
  uint32_t layer_count;         //
  uint32_t kv_count;            // 2, or 1 where K and V are one vector (latent attention)
  uint32_t heads;               //
  uint32_t page_tokens;         // at least 1
  uint32_t page_count;          // pages of a layer's tensor
  uint32_t block_tokens;        // at least 1
  uint32_t block_count;         //
};

static_assert(sizeof(PieceEntry) == 24 && offsetof(PieceEntry, bytes) == 16, "ABI");
static_assert(sizeof(PieceCopy) == 24 && offsetof(PieceCopy, chunk_bytes) == 16, "ABI");
static_assert(sizeof(LayerPages) == 56 && offsetof(LayerPages, segments) == 40, "ABI");
static_assert(sizeof(PagedCopy) == 40 && offsetof(PagedCopy, layer_count) == 24, "ABI");
static_assert(sizeof(TokenCopy) == 128 && offsetof(TokenCopy, first_layer) == 96, "ABI");

// ---- Index functions ---------------------------------------------------------------------------------------------

// Bytes [begin, end) of a run.
struct Span {
  uint64_t begin;
  uint64_t end;
};

// Chunk number `chunk` of a run of `bytes` bytes at `src`; empty beyond the last. Inner cuts lie where the *address* is a
// multiple of 16, so that a run that starts between vectors has one ragged head and one ragged tail, not one in each chunk.
KVCACHE_HD Span chunk_span(uint64_t src, uint64_t bytes, uint32_t chunk, uint32_t chunk_bytes) {
  const uint64_t head = src & 15;
  const uint64_t first = uint64_t(chunk) * chunk_bytes;
  if (first >= bytes) return {0, 0};
  const bool last = first + chunk_bytes >= bytes;
  return {chunk == 0 ? 0 : first - head, last ? bytes : first + chunk_bytes - head};
}

// The widest of 16, 8, 4 and 1 bytes that divides every number whose bits were or-ed together.
KVCACHE_HD uint32_t vector_bytes(uint64_t bits) {
  return (bits & 15) == 0 ? 16 : (bits & 7) == 0 ? 8 : (bits & 3) == 0 ? 4 : 1;
}

// One chunk of one page: what to copy between the engine's side and the slot's.
struct PageChunk {
  uint32_t layer;
  uint32_t entry;  // index into PagedCopy::blocks
  uint32_t chunk;  // within the page, through its segments
};

KVCACHE_HD PageChunk page_chunk(const PagedCopy& copy, uint32_t item) {
  const uint32_t page = item / copy.chunks_per_page;
  const uint32_t entries = copy.slot_count * copy.slot_blocks;
  return {page / entries, page % entries, item % copy.chunks_per_page};
}

KVCACHE_HD uint64_t engine_segment(const LayerPages& layer, uint32_t block, uint32_t segment) {
  return layer.base + block * layer.block_stride + segment * layer.segment_stride;
}

// `place` is the block's index within its slot.
KVCACHE_HD uint64_t slot_segment(const LayerPages& layer, uint64_t slot, uint32_t place, uint32_t segment) {
  return slot + layer.slot_offset + (uint64_t(place) * layer.segments + segment) * layer.segment_bytes;
}

// All heads of one token, K or V, in one layer.
struct TokenRow {
  uint32_t layer;  // counted from first_layer
  uint32_t block;
  uint32_t token;  // within the block
  uint32_t kv;
};

KVCACHE_HD TokenRow token_row(const TokenCopy& copy, uint32_t item) {
  const uint32_t token = item / copy.kv_count;
  const uint32_t block = token / copy.block_tokens;
  return {block / copy.block_count, block % copy.block_count, token % copy.block_tokens, item % copy.kv_count};
}

// `place` is an entry of the slot mapping, not negative.
KVCACHE_HD uint64_t page_row(const TokenCopy& copy, uint64_t base, uint64_t place, uint32_t kv) {
  return base + place / copy.page_tokens * copy.page_stride + place % copy.page_tokens * copy.page_token_stride +
         kv * copy.page_kv_stride;
}

KVCACHE_HD uint64_t block_row(const TokenCopy& copy, uint64_t block, const TokenRow& row) {
  return block + (uint64_t(copy.first_layer) + row.layer) * copy.block_layer_stride +
         row.token * copy.block_token_stride + row.kv * copy.block_kv_stride;
}

}  // namespace kvcache
