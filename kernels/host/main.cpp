// Runs the kernels on the CPU, under AddressSanitizer and UndefinedBehaviorSanitizer, for the tests of this crate.
//
// Reads cases from standard input until it ends, and answers each on standard output (little endian, as src/lib.rs
// writes them). All addresses of a case are offsets into its *arena*, one run of bytes that starts at a multiple of 64;
// they are made real here. Only the ranges that the case names may be touched: everything else in the arena is poisoned
// while the kernel runs, and each table is an allocation of its own.
#include "shim.h"

#include "../paged_copy.cu"

#include <sanitizer/asan_interface.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

// Nothing here is worth a search for leaks, which does not work under a debugger or in some containers.
extern "C" const char* __asan_default_options() { return "detect_leaks=0"; }

namespace {

using namespace kvcache;

struct Case {
  uint32_t kernel, grid, threads, order;
  uint64_t seed, argument_bytes, table_bytes[3], range_count, arena_bytes;
};
struct Range {
  uint64_t begin, end;
};

void read_exactly(void* into, size_t bytes) {
  if (bytes != 0 && fread(into, 1, bytes, stdin) != bytes) {
    fprintf(stderr, "standard input ended within a case\n");
    exit(2);
  }
}

// An allocation of exactly this size, so that a byte beyond it is an error.
struct Table {
  std::unique_ptr<unsigned char[]> bytes;
  size_t size;

  explicit Table(size_t size) : bytes(new unsigned char[size]), size(size) { read_exactly(bytes.get(), size); }
  template <typename Entry>
  Entry* entries() const {
    return reinterpret_cast<Entry*>(bytes.get());
  }
  uint64_t address() const { return reinterpret_cast<uint64_t>(bytes.get()); }
  template <typename Entry>
  size_t count() const {
    return size / sizeof(Entry);
  }
};

void relocate(const Table& table, uint64_t arena) {
  for (size_t i = 0; i < table.count<uint64_t>(); i++) table.entries<uint64_t>()[i] += arena;
}

template <typename Arguments>
Arguments arguments(const Table& raw) {
  if (raw.size != sizeof(Arguments)) {
    fprintf(stderr, "arguments of %zu bytes, the kernel takes %zu\n", raw.size, sizeof(Arguments));
    exit(2);
  }
  Arguments values;
  memcpy(&values, raw.bytes.get(), sizeof(values));
  return values;
}

void run(const Case& c, const Table& raw, Table (&tables)[3], uint64_t arena) {
  const ThreadOrder order = ThreadOrder(c.order);
  switch (c.kernel) {
    case 0: {
      PieceCopy copy = arguments<PieceCopy>(raw);
      for (size_t i = 0; i < tables[0].count<PieceEntry>(); i++) {
        tables[0].entries<PieceEntry>()[i].src += arena;
        tables[0].entries<PieceEntry>()[i].dst += arena;
      }
      copy.pieces = tables[0].address();
      return launch(kvcache_copy_pieces, copy, c.grid, c.threads, order, c.seed);
    }
    case 1:
    case 2: {
      PagedCopy copy = arguments<PagedCopy>(raw);
      for (size_t i = 0; i < tables[0].count<LayerPages>(); i++) tables[0].entries<LayerPages>()[i].base += arena;
      relocate(tables[1], arena);
      // What the case has in `layers` is an offset into the table: a launch may begin at any layer.
      copy.layers += tables[0].address();
      copy.slots = tables[1].address();
      copy.blocks = tables[2].address();
      return launch(c.kernel == 1 ? kvcache_gather_pages : kvcache_scatter_pages, copy, c.grid, c.threads, order, c.seed);
    }
    case 3:
    case 4: {
      TokenCopy copy = arguments<TokenCopy>(raw);
      relocate(tables[0], arena);
      relocate(tables[2], arena);
      copy.bases = tables[0].address();
      copy.slot_mapping = tables[1].address();
      copy.blocks = tables[2].address();
      return launch(c.kernel == 3 ? kvcache_gather_tokens : kvcache_scatter_tokens, copy, c.grid, c.threads, order, c.seed);
    }
    default:
      fprintf(stderr, "there is no kernel %u\n", c.kernel);
      exit(2);
  }
}

}  // namespace

int main() {
  Case c;
  while (fread(&c, 1, sizeof(c), stdin) == sizeof(c)) {
    Table raw(c.argument_bytes);
    Table tables[3] = {Table(c.table_bytes[0]), Table(c.table_bytes[1]), Table(c.table_bytes[2])};
    std::vector<Range> ranges(c.range_count);
    read_exactly(ranges.data(), ranges.size() * sizeof(Range));
    const size_t allocated = (c.arena_bytes + 127) / 64 * 64;
    auto* arena = static_cast<unsigned char*>(aligned_alloc(64, allocated));
    read_exactly(arena, c.arena_bytes);
    ASAN_POISON_MEMORY_REGION(arena, allocated);
    for (const Range& range : ranges) ASAN_UNPOISON_MEMORY_REGION(arena + range.begin, range.end - range.begin);
    run(c, raw, tables, reinterpret_cast<uint64_t>(arena));
    ASAN_UNPOISON_MEMORY_REGION(arena, allocated);
    fwrite(arena, 1, c.arena_bytes, stdout);
    fflush(stdout);
    free(arena);
  }
  return 0;
}
