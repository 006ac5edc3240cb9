/* The KV cache library. Made by cbindgen from kvcache-capi: do not edit.
 *
 * Every function that can fail returns a kvc_status and leaves its words for kvc_last_error. Outputs are written only when the
 * status is KVC_OK; the one exception is the size that KVC_BUFFER_TOO_SMALL tells. Pointers that must not be NULL are checked.
 * Handles may be used from any number of threads, and one that was closed is an error, never undefined. Nothing here throws, and no
 * panic gets out.
 *
 * A child of fork has no threads but one: it must not use handles of its parent, nor close them. Open handles after the fork. Close
 * all handles before the library is unloaded.
 *
 * "The caller's duties" are what the library cannot check.
 */

#ifndef KVCACHE_H
#define KVCACHE_H



#include <stddef.h>
#include <stdint.h>
#include <string.h>

/**
 * The version of the binary interface that a header describes. It grows with every addition; a change that breaks
 * programs comes with another soname.
 */
#define KVC_ABI_VERSION 1

/**
 * What became of a call. A code keeps its number and its meaning for ever; new ones are added at the end.
 */
enum kvc_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Done.
     */
    KVC_OK = 0,
    /**
     * Not ended yet: ask again. Not an error.
     */
    KVC_PENDING = 1,
    /**
     * An argument that must not be NULL is.
     */
    KVC_NULL_ARGUMENT = 2,
    /**
     * An argument has a value that it cannot have.
     */
    KVC_INVALID_ARGUMENT = 3,
    /**
     * A handle that was closed, is of another kind, or never was one.
     */
    KVC_BAD_HANDLE = 4,
    /**
     * A setting is missing, unknown or wrong.
     */
    KVC_BAD_CONFIG = 5,
    /**
     * A buffer's bytes do not fit the keys.
     */
    KVC_WRONG_SIZE = 6,
    /**
     * The buffer for an answer is too small; its size was set to what is needed, and nothing is lost.
     */
    KVC_BUFFER_TOO_SMALL = 7,
    /**
     * Header and library do not go together.
     */
    KVC_VERSION_MISMATCH = 8,
    /**
     * This machine or this build lacks what was asked for.
     */
    KVC_UNAVAILABLE = 9,
    /**
     * The system refuses memory, a thread or a file.
     */
    KVC_SYSTEM = 10,
    /**
     * A bound is reached: try again after something has ended.
     */
    KVC_BUSY = 11,
    /**
     * Bytes from the other half of the engine that are not what it would have sent.
     */
    KVC_MALFORMED = 12,
    /**
     * What was waited for was given up, since its cache was closed.
     */
    KVC_CANCELLED = 13,
    /**
     * A defect of this library. It was caught: the call did nothing more, and the caller goes on without the cache.
     */
    KVC_INTERNAL = 14,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum kvc_status kvc_status;
#else
typedef int32_t kvc_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * How important a log line is.
 */
enum kvc_log_level
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Nothing at all.
     */
    KVC_LOG_OFF = 0,
    /**
     * Something that was asked for is not done.
     */
    KVC_LOG_ERROR = 1,
    /**
     * The cache is slower or smaller than it could be.
     */
    KVC_LOG_WARN = 2,
    /**
     * What was opened, and how.
     */
    KVC_LOG_INFO = 3,
    /**
     * For those who look for a fault.
     */
    KVC_LOG_DEBUG = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum kvc_log_level kvc_log_level;
#else
typedef int32_t kvc_log_level;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * How much kvc_store_end_step waits for.
 */
enum kvc_step_end
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Nothing: copies may outlive the step.
     */
    KVC_STEP_GO_ON = 0,
    /**
     * Every copy: the engine is about to change its blocks, or to sleep.
     */
    KVC_STEP_FINISH = 1,
    /**
     * Everything between L1 and L2 as well: there will be no further step.
     */
    KVC_STEP_LAST = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum kvc_step_end kvc_step_end;
#else
typedef int32_t kvc_step_end;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * A cache of blocks of one size. Closed by kvc_close. All functions that take one may be called from any number of threads at a
 * time.
 */
typedef struct kvc_cache kvc_cache;

/**
 * The half of a cache that decides which block is in which slot, for engines that schedule in one process and copy in others (one
 * kvc_store per rank). Plans go down and reports come up as bytes; how they travel is the engine's affair. Closed by
 * kvc_directory_close.
 *
 * All functions may be called from any thread; they wait for each other and for nothing else. Times are seconds of any clock that
 * does not go back.
 */
typedef struct kvc_directory kvc_directory;

/**
 * Slots that are reserved for absent blocks of a prefix: see kvc_reserve. It may outlive its cache, and be used from any thread.
 */
typedef struct kvc_fill kvc_fill;

/**
 * Leading blocks of a prefix that stay where they are until the lease is released: see kvc_lease_blocks. It may outlive its cache, and
 * be used from any thread.
 */
typedef struct kvc_lease kvc_lease;

/**
 * The half of a cache that moves bytes, for one rank of an engine whose scheduler has a kvc_directory. Closed by kvc_store_close.
 *
 * The engine drives it by its steps:
 *
 * begin_step(plan), start_loads, then for each layer wait_layer, the layer itself, store_layer; end_step, take_report.
 *
 * All functions may be called from any thread; one at a time is at work, and the others wait for it. `stream` is NULL where the
 * engine computes on the CPU. On a device it is the address of the raw handle of the stream (a CUstream as a number): then nothing
 * waits, the stream does.
 */
typedef struct kvc_store kvc_store;

/**
 * Takes one log line: its level (a kvc_log_level), the part of the library, and the text, both of which live until it
 * returns. It may be called from any thread, also several at a time. It must not call this library, nor throw or jump out, nor wait
 * for a thread that is in a call of this library.
 */
typedef void (*kvc_log_callback)(void *user_data, int32_t level, const char *part, const char *text);

/**
 * The common settings of a cache, for kvc_open_config. Make one with kvc_config_init, then set fields; texts may go when
 * the call has returned.
 */
typedef struct kvc_config {
    /**
     * sizeof(kvc_config) of the program's header.
     */
    size_t struct_size;
    /**
     * KVC_ABI_VERSION of the program's header.
     */
    uint32_t abi_version;
    /**
     * Threads that copy, the caller's included; 0 means 1.
     */
    uint32_t copy_threads;
    /**
     * Bytes of one block, for all layers.
     */
    uint64_t block_bytes;
    /**
     * Bytes of memory for blocks.
     */
    uint64_t capacity_bytes;
    /**
     * Separates caches; needed with `slab_path` and `remote`. NULL: none.
     */
    const char *namespace_name;
    /**
     * "default", "s3fifo", "lru"; NULL: default.
     */
    const char *eviction;
    /**
     * A directory in shared memory, such as "/dev/shm", in which blocks outlive this process. NULL: none.
     */
    const char *slab_path;
    /**
     * Servers of L2, such as "tcp://cache-0:12345,cache-1:12345". NULL: none.
     */
    const char *remote;
    /**
     * More settings, as the JSON object of kvc_open; none that stands here as well. NULL: none.
     */
    const char *more_json;
} kvc_config;

/**
 * One piece of a block in the caller's memory.
 */
typedef struct kvc_segment {
    /**
     * Its first byte. May be NULL if there are no bytes.
     */
    void *data;
    /**
     * Its length.
     */
    size_t bytes;
} kvc_segment;

/**
 * What the cache may do for one request. Make one with kvc_request_init.
 */
typedef struct kvc_request {
    /**
     * sizeof(kvc_request) of the program's header.
     */
    size_t struct_size;
    /**
     * Tokens of the prompt, for the setting "prompt_only"; 0 if all of its tokens count as that.
     */
    size_t prompt_tokens;
    /**
     * Load no more than this many tokens; 0 for any number.
     */
    size_t max_load_tokens;
    /**
     * Store no more than this many tokens; 0 for any number.
     */
    size_t max_store_tokens;
    /**
     * Not 0: load nothing.
     */
    uint32_t skip_load;
    /**
     * Not 0: store nothing.
     */
    uint32_t skip_store;
    /**
     * What separates its blocks from those of the same tokens: an adapter, a salt. NULL with 0 bytes for none.
     */
    const void *extra;
    /**
     * Bytes of `extra`.
     */
    size_t extra_bytes;
} kvc_request;

/**
 * The engine's blocks of one KV cache group of a request, in the order of its tokens, from its first one on. UINT32_MAX stands for no
 * block, as does the setting "null_block": nothing is loaded there and nothing stored.
 */
typedef struct kvc_block_table {
    /**
     * Their numbers; NULL with a count of 0.
     */
    const uint32_t *blocks;
    /**
     * How many there are.
     */
    size_t count;
} kvc_block_table;

/**
 * Where one layer of the engine keeps its blocks. Block `b` is `segments` pieces of `segment_bytes` bytes; piece `s` begins at
 * base + b * block_stride + s * segment_stride. Strides are in bytes. Make one with kvc_layer_init.
 */
typedef struct kvc_layer {
    /**
     * sizeof(kvc_layer) of the program's header.
     */
    size_t struct_size;
    /**
     * The layer's name, which must be another for each.
     */
    const char *name;
    /**
     * The first byte of block 0, in host or device memory. It has to stay until the store is closed.
     */
    void *base;
    /**
     * Bytes from a block to the next.
     */
    size_t block_stride;
    /**
     * Blocks.
     */
    size_t block_count;
    /**
     * Pieces of a block: 2 where keys and values lie apart.
     */
    size_t segments;
    /**
     * Bytes from a piece to the next.
     */
    size_t segment_stride;
    /**
     * Bytes of a piece.
     */
    size_t segment_bytes;
    /**
     * The KV cache group.
     */
    uint32_t group;
    /**
     * 0.
     */
    uint32_t reserved;
} kvc_layer;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The library's version, such as "0.1.0". A static text, never NULL.
 *
 * Any thread, at any time.
 */
const char *kvc_version(void);

/**
 * The version of the binary interface that the library has: programs may use headers up to this KVC_ABI_VERSION.
 *
 * Any thread, at any time.
 */
uint32_t kvc_abi_version(void);

/**
 * 1 if this build of the library can do `feature`, 0 if not or if it does not know the word: "shared-memory", "remote",
 * "tls", "rdma", "cuda", "async", "in-place", "engine-halves". Whether the machine has what it needs, such as a driver, is
 * found out when a handle is opened.
 *
 * Any thread, at any time.
 *
 * The caller's duties:
 * `feature` is NULL or a string that ends with a NUL.
 */
int32_t kvc_has_feature(const char *feature);

/**
 * The text of this thread's last call that failed: one line, in lower case, with the value and the remedy. Empty if none
 * has.
 *
 * The text belongs to the library and lives until this thread's next call that fails, or its end. Never NULL. Any thread,
 * at any time.
 */
const char *kvc_last_error(void);

/**
 * The name of a status code, such as "KVC_OK"; "unknown status" for a number that is none. A static text, never NULL.
 *
 * Any thread, at any time.
 */
const char *kvc_status_name(int32_t status);

/**
 * Sends the library's log lines up to `level` (a kvc_log_level) to `callback`, for all handles of this process; NULL sends
 * them nowhere, as at the start. When it has returned, the callback before it is not running and is not called any more.
 *
 * Any thread, but not from the callback.
 *
 * The caller's duties:
 * `callback` can be called with `user_data` from any thread until another one is set.
 */
kvc_status kvc_set_log(kvc_log_callback callback,
                       void *user_data,
                       int32_t level);

/**
 * Opens a cache. `config_json` is an object of settings; "block_bytes" and "capacity_bytes" are needed, and docs/c-api.md lists
 * them all. Takes milliseconds: memory is taken, and servers are connected to, in the background.
 *
 * The header's macro of the same name passes the header's version as well; this function trusts that it fits.
 *
 * Errors: KVC_BAD_CONFIG names key, place, value and remedy; KVC_SYSTEM if memory or a thread is refused. Any thread.
 *
 * The caller's duties:
 * `config_json` is NULL or ends with a NUL; `out` is NULL or writable.
 */
kvc_status kvc_open(const char *config_json,
                    struct kvc_cache **out);

/**
 * As kvc_open, for a program whose header has this KVC_ABI_VERSION.
 *
 * Errors: KVC_VERSION_MISMATCH if the header is newer than the library; else as kvc_open.
 *
 * The caller's duties:
 * As kvc_open.
 */
kvc_status kvc_open_for_abi(uint32_t abi_version, const char *config_json, struct kvc_cache **out);

/**
 * Opens a cache from a structure. See kvc_open.
 *
 * Errors: as kvc_open_for_abi; KVC_VERSION_MISMATCH if fields are used that this library does not have. Any thread.
 *
 * The caller's duties:
 * `config` is NULL or as long as its first field says, with texts that are NULL or end with a NUL; `out` is NULL or writable.
 */
kvc_status kvc_open_config(const struct kvc_config *config,
                           struct kvc_cache **out);

/**
 * Closes a cache and gives its memory back, after the calls that use it have returned. NULL is allowed, and so is a handle that
 * was closed before: nothing happens then. Blocks in `slab_path` and in L2 stay for others. While there are leases and fills of it,
 * its memory and its threads stay until the last of them ends.
 *
 * Waits for calls under way, which takes as long as they do, and so does whoever closes the same cache meanwhile: after any kvc_close
 * of it has returned, the library uses no buffer of its tickets any more. Any thread, but not the log callback.
 */
void kvc_close(struct kvc_cache *cache);

/**
 * Keys of the whole blocks of `count` tokens, as `[blocks][16]` bytes in `keys`, their number in `*blocks`; a tail shorter than
 * a block is left out. With `keys` NULL only the number is written: it is count / block_tokens. `extra` separates what tokens
 * do not say, such as an adapter or a tenant's salt; NULL with 0 bytes for none.
 *
 * `parent` is NULL for the first tokens of a prompt, or the 16 bytes of the last key before `tokens`, for prompts that grow.
 * Linear: about 0.2 us for a block of 16 tokens. Any thread.
 *
 * The caller's duties:
 * `tokens`, `extra` and `parent` are NULL or readable; `keys` is NULL or 16 * (count / block_tokens) bytes are writable there;
 * `blocks` is NULL or writable.
 */
kvc_status kvc_hash_tokens_after(const struct kvc_cache *cache,
                                 const uint8_t *parent,
                                 const int32_t *tokens,
                                 size_t count,
                                 size_t block_tokens,
                                 const void *extra,
                                 size_t extra_bytes,
                                 uint8_t *keys,
                                 size_t *blocks);

/**
 * As kvc_hash_tokens_after for the first tokens of a prompt.
 *
 * The caller's duties:
 * As kvc_hash_tokens_after.
 */
kvc_status kvc_hash_tokens(const struct kvc_cache *cache,
                           const int32_t *tokens,
                           size_t count,
                           size_t block_tokens,
                           const void *extra,
                           size_t extra_bytes,
                           uint8_t *keys,
                           size_t *blocks);

/**
 * How many leading blocks are here, or in L2, as `*leading`. Under a microsecond for a short prefix without L2; with L2 a round
 * trip, bounded by 50 ms. Any thread.
 *
 * The caller's duties:
 * `keys` is NULL or 16 * blocks bytes; `leading` is NULL or writable.
 */
kvc_status kvc_match(struct kvc_cache *cache,
                     const uint8_t *keys,
                     size_t blocks,
                     size_t *leading);

/**
 * Stores blocks, which lie one after the other in `data`; `keys` is a prefix from its first block on. `*stored` is the number of
 * leading blocks that the cache holds then: fewer than asked for if everything else is in use, which is no error.
 *
 * Copies on the caller's thread, and on "copy_threads" more. Goes to L2 in the background. Any thread.
 *
 * Errors: KVC_WRONG_SIZE unless `bytes` is blocks * block_bytes; nothing is stored then.
 *
 * The caller's duties:
 * `keys` is NULL or 16 * blocks bytes; `data` is NULL or `bytes` bytes, which nobody changes meanwhile; `stored` is NULL or
 * writable.
 */
kvc_status kvc_put(struct kvc_cache *cache,
                   const uint8_t *keys,
                   size_t blocks,
                   const void *data,
                   size_t bytes,
                   size_t *stored);

/**
 * Copies the leading blocks that the cache has, here or in L2, into `out`, one after the other; `*loaded` is their number. What
 * `out` holds after them is undefined. A fault is a miss.
 *
 * Copies on the caller's thread, and on "copy_threads" more. What comes from L2 is verified; it is waited for 2 s at most. Any
 * thread.
 *
 * Errors: KVC_WRONG_SIZE unless `bytes` is blocks * block_bytes.
 *
 * The caller's duties:
 * `keys` is NULL or 16 * blocks bytes; `out` is NULL or `bytes` bytes, which nobody else uses meanwhile; `loaded` is NULL or
 * writable.
 */
kvc_status kvc_get(struct kvc_cache *cache,
                   const uint8_t *keys,
                   size_t blocks,
                   void *out,
                   size_t bytes,
                   size_t *loaded);

/**
 * Removes blocks here, in L2 and for a later process; `*deleted` is how many there were. Any thread.
 *
 * The caller's duties:
 * `keys` is NULL or 16 * blocks bytes; `deleted` is NULL or writable.
 */
kvc_status kvc_delete(struct kvc_cache *cache, const uint8_t *keys, size_t blocks, size_t *deleted);

/**
 * Removes everything, here and for a later process. What is in L2 stays there for others; this cache neither finds it nor shares
 * anything with them from now on. Any thread.
 */
kvc_status kvc_clear(struct kvc_cache *cache);

/**
 * Waits until no block is on its way to L2, for `timeout_ms` milliseconds at most: then KVC_PENDING. Any thread.
 */
kvc_status kvc_flush(struct kvc_cache *cache,
                     uint64_t timeout_ms);

/**
 * As kvc_put, for blocks in pieces: `segments` are `[blocks][segment_count / blocks]`, and those of a block are block_bytes long
 * together.
 *
 * Errors: KVC_WRONG_SIZE names the block that is not, and stores nothing.
 *
 * The caller's duties:
 * As kvc_put; `segments` is NULL or `segment_count` segments, whose bytes nobody changes meanwhile.
 */
kvc_status kvc_put_segments(struct kvc_cache *cache,
                            const uint8_t *keys,
                            size_t blocks,
                            const struct kvc_segment *segments,
                            size_t segment_count,
                            size_t *stored);

/**
 * As kvc_get, for blocks in pieces. See kvc_put_segments.
 *
 * The caller's duties:
 * As kvc_get; `segments` is NULL or `segment_count` segments, which do not overlap and which nobody else uses meanwhile.
 */
kvc_status kvc_get_segments(struct kvc_cache *cache,
                            const uint8_t *keys,
                            size_t blocks,
                            const struct kvc_segment *segments,
                            size_t segment_count,
                            size_t *loaded);

/**
 * As kvc_put_segments, in the background: see kvc_put_async. `segments` may go when the call has returned, the bytes that they name
 * may not.
 *
 * The caller's duties:
 * As kvc_put_segments, with the bytes until the end of the ticket; `ticket` is NULL or writable.
 */
kvc_status kvc_put_segments_async(struct kvc_cache *cache,
                                  const uint8_t *keys,
                                  size_t blocks,
                                  const struct kvc_segment *segments,
                                  size_t segment_count,
                                  uint64_t *ticket);

/**
 * As kvc_get_segments, in the background: see kvc_get_async and kvc_put_segments_async.
 *
 * The caller's duties:
 * As kvc_get_segments, with the bytes until the end of the ticket; `ticket` is NULL or writable.
 */
kvc_status kvc_get_segments_async(struct kvc_cache *cache,
                                  const uint8_t *keys,
                                  size_t blocks,
                                  const struct kvc_segment *segments,
                                  size_t segment_count,
                                  uint64_t *ticket);

/**
 * As kvc_put_segments, from the memory of the device that the setting "device" names. `stream` is the address of the raw handle of the
 * engine's stream (a CUstream as a number): what it holds is waited for first, on the device. Returns when the bytes have left the
 * device. Where copies fail, or `stream` is NULL, fewer blocks are stored; kvc_problems says why.
 *
 * Errors: KVC_UNAVAILABLE without the setting "device"; else as kvc_put_segments.
 *
 * The caller's duties:
 * As kvc_put_segments, for device memory, from the moment that the stream has come to what it holds now; `stream` is NULL or readable.
 */
kvc_status kvc_put_device_segments(struct kvc_cache *cache,
                                   const uint8_t *keys,
                                   size_t blocks,
                                   const struct kvc_segment *segments,
                                   size_t segment_count,
                                   const uint64_t *stream,
                                   size_t *stored);

/**
 * As kvc_get_segments, to the memory of the device that the setting "device" names. What `stream` holds is waited for first, since it
 * may still use what is overwritten. Returns when the bytes have arrived; work that is put into any stream after that finds them. See
 * kvc_put_device_segments.
 *
 * The caller's duties:
 * As kvc_get_segments, for device memory, from the moment that the stream has come to what it holds now; `stream` is NULL or readable.
 */
kvc_status kvc_get_device_segments(struct kvc_cache *cache,
                                   const uint8_t *keys,
                                   size_t blocks,
                                   const struct kvc_segment *segments,
                                   size_t segment_count,
                                   const uint64_t *stream,
                                   size_t *loaded);

/**
 * Takes a lease of the leading blocks that are in L1, and writes where they begin: block `i` of the keys is block_bytes bytes from
 * addresses[i] on, for `i` below `*leading`. They may be read until kvc_lease_release, and must not be written.
 *
 * A leased block is not evicted, and its bytes stay though it is deleted. While everything is leased, puts store nothing: hold a
 * lease for as long as a copy takes. Blocks of L2 can be brought here before with kvc_prefetch_async. A lease of no block has to be
 * released as well. Does not wait. Any thread.
 *
 * The caller's duties:
 * `keys` is NULL or 16 * blocks bytes; `addresses` is NULL or writable for `blocks` pointers; `out` and `leading` are NULL or
 * writable.
 */
kvc_status kvc_lease_blocks(struct kvc_cache *cache,
                            const uint8_t *keys,
                            size_t blocks,
                            const void **addresses,
                            size_t *leading,
                            struct kvc_lease **out);

/**
 * Releases a lease: its addresses must not be read any more. NULL is allowed, and so is one that was released before. Any thread.
 */
void kvc_lease_release(struct kvc_lease *lease);

/**
 * Reserves slots for the absent blocks of `keys`, a prefix from its first block on, and writes where their bytes go: block_bytes bytes
 * from addresses[i] on for block `i`, or NULL where there is nothing to write. The first `*reach` blocks are present, or have an
 * address; there is no room for block `*reach`, if there is one.
 *
 * Fill all of them, then kvc_commit; or kvc_abandon. Until then other puts of these blocks count them as held and write nothing, and
 * gets miss them. The slots are out of the cache's hands that long. Does not wait. Any thread.
 *
 * The caller's duties:
 * `keys` is NULL or 16 * blocks bytes; `addresses` is NULL or writable for `blocks` pointers; `out` and `reach` are NULL or writable.
 */
kvc_status kvc_reserve(struct kvc_cache *cache,
                       const uint8_t *keys,
                       size_t blocks,
                       void **addresses,
                       size_t *reach,
                       struct kvc_fill **out);

/**
 * The first `written` of the blocks with an address are written, in the order of the keys: they are hits from now on, and go to L2 as
 * those of kvc_put do; the others are given back. SIZE_MAX for all. `*held` is the number of leading blocks that the cache holds then.
 * The fill is closed by this. Any thread.
 *
 * The caller's duties:
 * Nobody writes to the addresses of the fill any more; `held` is NULL or writable.
 */
kvc_status kvc_commit(struct kvc_fill *fill,
                      size_t written,
                      size_t *held);

/**
 * Gives the slots of a fill back: none of its blocks is a hit. NULL is allowed, and so is a fill that was committed or abandoned
 * before. Any thread.
 *
 * The caller's duties:
 * Nobody writes to the addresses of the fill any more.
 */
void kvc_abandon(struct kvc_fill *fill);

/**
 * As kvc_put, in the background. `*ticket` stands for the outcome: see kvc_poll.
 *
 * `keys` may go when the call has returned; `data` must stay as it is until the ticket has ended or the cache was closed. Returns
 * within microseconds. Any thread.
 *
 * Errors: KVC_BUSY if "async_tickets" are out; KVC_SYSTEM if the first thread is refused. What kvc_put refuses is told by the ticket.
 *
 * The caller's duties:
 * As kvc_put, with `data` until the end of the ticket; `ticket` is NULL or writable.
 */
kvc_status kvc_put_async(struct kvc_cache *cache,
                         const uint8_t *keys,
                         size_t blocks,
                         const void *data,
                         size_t bytes,
                         uint64_t *ticket);

/**
 * As kvc_get, in the background. `out` must not be touched until the ticket has ended or the cache was closed; otherwise as
 * kvc_put_async.
 *
 * The caller's duties:
 * As kvc_get, with `out` until the end of the ticket; `ticket` is NULL or writable.
 */
kvc_status kvc_get_async(struct kvc_cache *cache,
                         const uint8_t *keys,
                         size_t blocks,
                         void *out,
                         size_t bytes,
                         uint64_t *ticket);

/**
 * Brings the leading blocks that L2 has into L1, in the background, so that a later get finds them here. The outcome is the number
 * of leading blocks in L1 then. Without L2 it ends at once. Otherwise as kvc_put_async.
 *
 * The caller's duties:
 * `keys` is NULL or 16 * blocks bytes; `ticket` is NULL or writable.
 */
kvc_status kvc_prefetch_async(struct kvc_cache *cache,
                              const uint8_t *keys,
                              size_t blocks,
                              uint64_t *ticket);

/**
 * Where the work of a ticket stands. KVC_PENDING until it has ended; then what the call would have returned, once, with its number
 * of blocks in `*blocks` if that is KVC_OK. A ticket whose end was told is unknown: KVC_INVALID_ARGUMENT.
 *
 * Where a defect of the library was caught in the cache (KVC_INTERNAL), tickets can be asked for all the same: what had begun ends as it
 * does, and what had not ends with KVC_INTERNAL.
 *
 * Does not wait. Any thread.
 *
 * The caller's duties:
 * `blocks` is NULL or writable.
 */
kvc_status kvc_poll(struct kvc_cache *cache,
                    uint64_t ticket,
                    size_t *blocks);

/**
 * As kvc_poll, but waits for the end, for `timeout_ms` milliseconds at most. KVC_CANCELLED if the cache is closed meanwhile and the
 * work had not begun.
 *
 * The caller's duties:
 * As kvc_poll.
 */
kvc_status kvc_wait(struct kvc_cache *cache,
                    uint64_t ticket,
                    uint64_t timeout_ms,
                    size_t *blocks);

/**
 * Tickets that have ended and were neither listed nor polled since: up to `capacity` of them in `tickets`, oldest end first, and
 * their number in `*count`. Each still has to be polled for its outcome. If there are more, the descriptor of kvc_event_fd is
 * readable again. Does not wait. Any thread.
 *
 * The caller's duties:
 * `tickets` is NULL or `capacity` numbers are writable there; `count` is NULL or writable.
 */
kvc_status kvc_ended(struct kvc_cache *cache,
                     uint64_t *tickets,
                     size_t capacity,
                     size_t *count);

/**
 * A file descriptor that is readable when a ticket has ended, also one that ended before this was called: for poll, epoll and the
 * like. Read 8 bytes from it, which does not block, then ask kvc_ended or kvc_poll: in this order, or an end between both is not
 * heard of. It may be readable though nothing is left to be told. One thread should read it.
 *
 * It belongs to the cache: do not close it; it is closed with the cache, so take it out of epoll before. Any thread.
 *
 * The caller's duties:
 * `fd` is NULL or writable.
 */
kvc_status kvc_event_fd(struct kvc_cache *cache,
                        int32_t *fd);

/**
 * Every count of a cache as one JSON object of numbers, by the names of docs/metrics.md, with a NUL.
 *
 * `*bytes` is the size of `buffer` when the call is made and that of the text, its NUL included, when it returns. With `buffer`
 * NULL only the size is said. KVC_BUFFER_TOO_SMALL if it does not fit: `*bytes` is what is needed then. Counts grow between
 * two calls: leave some room. Any thread.
 *
 * The caller's duties:
 * `buffer` is NULL or `*bytes` bytes are writable there; `bytes` is NULL or readable and writable.
 */
kvc_status kvc_stats_json(const struct kvc_cache *cache,
                          char *buffer,
                          size_t *bytes);

/**
 * The same numbers in Prometheus' text format, as metrics that begin with "kvcache_". `name` tells caches of one process apart:
 * it becomes the label "cache" of every line; NULL for none. Sizes as with kvc_stats_json. Any thread.
 *
 * The caller's duties:
 * As kvc_stats_json; `name` is NULL or ends with a NUL.
 */
kvc_status kvc_stats_prometheus(const struct kvc_cache *cache,
                                const char *name,
                                char *buffer,
                                size_t *bytes);

/**
 * What is wrong now, one line each with its remedy: servers that cannot be reached, memory that could not be taken. An empty text
 * if nothing is. Sizes as with kvc_stats_json. May take a millisecond. Any thread.
 *
 * The caller's duties:
 * As kvc_stats_json.
 */
kvc_status kvc_problems(const struct kvc_cache *cache,
                        char *buffer,
                        size_t *bytes);

/**
 * Opens a directory. `config_json` is an object of settings, which docs/c-engine.md lists; "groups" and "slot_blocks" are needed, and
 * "ranks" if there is more than one. Every rank has to report before anything is stored. The header's macro of the same name passes
 * the header's version as well.
 *
 * Errors: KVC_BAD_CONFIG names key, place, value and remedy. Any thread.
 *
 * The caller's duties:
 * `config_json` is NULL or ends with a NUL; `out` is NULL or writable.
 */
kvc_status kvc_directory_open_for_abi(uint32_t abi_version,
                                      const char *config_json,
                                      struct kvc_directory **out);

/**
 * Closes a directory. NULL is allowed, and so is one that was closed before. Any thread.
 */
void kvc_directory_close(struct kvc_directory *directory);

/**
 * A request enters, under any name. A known one is left as it is. `options` may be NULL for a request without limits.
 *
 * The caller's duties:
 * `request` is NULL or ends with a NUL; `options` is NULL or as long as its first field says, with `extra` NULL or readable.
 */
kvc_status kvc_directory_add_request(struct kvc_directory *directory,
                                     const char *request,
                                     const struct kvc_request *options);

/**
 * Appends tokens of a request, after those given before: for key_source "tokens". Unknown requests are left alone.
 *
 * Errors: KVC_INVALID_ARGUMENT for numbers that are no token ids, and where key_source is "engine".
 *
 * The caller's duties:
 * `request` is NULL or ends with a NUL; `tokens` is NULL or `count` numbers.
 */
kvc_status kvc_directory_extend_tokens(struct kvc_directory *directory,
                                       const char *request,
                                       const int32_t *tokens,
                                       size_t count);

/**
 * Appends `count` of the engine's own block hashes, `hash_bytes` bytes each (1 to 64), one after the other: for key_source "engine".
 * Each covers the prefix up to its end. Unknown requests are left alone.
 *
 * Errors: KVC_INVALID_ARGUMENT for hashes of another length, and where key_source is "tokens".
 *
 * The caller's duties:
 * `request` is NULL or ends with a NUL; `hashes` is NULL or count * hash_bytes bytes.
 */
kvc_status kvc_directory_extend_hashes(struct kvc_directory *directory,
                                       const char *request,
                                       const uint8_t *hashes,
                                       size_t hash_bytes,
                                       size_t count);

/**
 * How many tokens (or hashes, by key_source) of a request are known: appending continues there. 0 for an unknown request.
 *
 * The caller's duties:
 * `request` is NULL or ends with a NUL; `units` is NULL or writable.
 */
kvc_status kvc_directory_known(struct kvc_directory *directory,
                               const char *request,
                               size_t *units);

/**
 * Asks L2 for a request's blocks, if there is one, so that they are here when the engine first looks. `total_tokens` are the
 * request's tokens so far.
 *
 * The caller's duties:
 * `request` is NULL or ends with a NUL.
 */
kvc_status kvc_directory_prefetch(struct kvc_directory *directory,
                                  const char *request,
                                  size_t total_tokens,
                                  double now_s);

/**
 * How many tokens of a request can be loaded beyond the first `local_tokens`, which the engine has itself: `*tokens`, 0 for a miss.
 * `*asynchronous` is 1 if the load happens between steps, 0 if within one. KVC_PENDING: ask again in the next step.
 *
 * The caller's duties:
 * `request` is NULL or ends with a NUL; `tokens` and `asynchronous` are NULL or writable.
 */
kvc_status kvc_directory_lookup(struct kvc_directory *directory,
                                const char *request,
                                size_t local_tokens,
                                size_t total_tokens,
                                double now_s,
                                size_t *tokens,
                                int32_t *asynchronous);

/**
 * The engine counts on `external_tokens` of the last look-up being loaded into the blocks of `tables`, one table for each group. The
 * load is in the next plan. `*asynchronous` as in kvc_directory_lookup. Once for each look-up, with 0 if the engine declines.
 *
 * Errors: KVC_INVALID_ARGUMENT, and nothing is loaded, for more tokens than the last look-up has offered, or tables that do not reach to
 * the end of what is loaded. It has offered 0 if it was a miss or KVC_PENDING, if there was none, or if this function has answered it
 * before.
 *
 * The caller's duties:
 * `request` is NULL or ends with a NUL; `tables` is NULL or `groups` tables of readable blocks; `asynchronous` is NULL or writable.
 */
kvc_status kvc_directory_commit_load(struct kvc_directory *directory,
                                     const char *request,
                                     size_t external_tokens,
                                     const struct kvc_block_table *tables,
                                     size_t groups,
                                     int32_t *asynchronous);

/**
 * Offloads what is new of a request's first `computed_tokens` tokens, which are or will be in the blocks of `tables` at the end of
 * this step. The copies are in the next plan, as job `*job`; 0 if there is nothing to copy.
 *
 * The blocks in `held` must not be used again before kvc_directory_next_ended says that the job has ended. `*held_count` is the
 * room in `held` when the call is made, at least as many as all tables have blocks, and their number when it returns; with less
 * room KVC_BUFFER_TOO_SMALL, with what is needed in `*held_count`, and nothing is offloaded. Nothing new can be offloaded before
 * `*next_tokens` tokens are computed.
 *
 * Errors: KVC_INVALID_ARGUMENT, and nothing is offloaded, for tables that do not reach to the end of the last slot that is computed.
 *
 * The caller's duties:
 * `request` is NULL or ends with a NUL; `tables` is NULL or `groups` tables of readable blocks; the others are NULL or writable,
 * `held` for `*held_count` numbers.
 */
kvc_status kvc_directory_offload(struct kvc_directory *directory,
                                 const char *request,
                                 size_t computed_tokens,
                                 const struct kvc_block_table *tables,
                                 size_t groups,
                                 uint64_t *job,
                                 uint32_t *held,
                                 size_t *held_count,
                                 size_t *next_tokens);

/**
 * The request will not be asked about again. Its jobs go on.
 *
 * The caller's duties:
 * `request` is NULL or ends with a NUL.
 */
kvc_status kvc_directory_finish(struct kvc_directory *directory, const char *request);

/**
 * The plan of this step, to be given to every rank's kvc_store_begin_step; 0 bytes if there is nothing to do. `scheduled_tokens` are
 * the tokens that the step computes.
 *
 * `*bytes` is the size of `buffer` when the call is made and that of the plan when it returns. With `buffer` NULL only the size is
 * said; KVC_BUFFER_TOO_SMALL if it does not fit. The plan is kept in both cases, and the next call gives it: without what was
 * committed or offloaded in between, so ask when all of the step was said.
 *
 * The caller's duties:
 * `buffer` is NULL or `*bytes` bytes are writable there; `bytes` is NULL or readable and writable.
 */
kvc_status kvc_directory_take_plan(struct kvc_directory *directory,
                                   size_t scheduled_tokens,
                                   double now_s,
                                   void *buffer,
                                   size_t *bytes);

/**
 * Takes in a report of one rank, from kvc_store_take_report. What has ended by it is given by kvc_directory_next_ended.
 *
 * Errors: KVC_MALFORMED if the bytes are not what a rank of the same library version says, or not one of this directory's ranks.
 *
 * The caller's duties:
 * `report` is NULL or `bytes` bytes.
 */
kvc_status kvc_directory_absorb(struct kvc_directory *directory,
                                const void *report,
                                size_t bytes);

/**
 * A job that has ended on every rank: its number, and the engine blocks that were held for it. KVC_PENDING if there is none.
 *
 * `*released_count` is the room in `released` when the call is made and the number of blocks when it returns. With `released`
 * NULL only the number is said; KVC_BUFFER_TOO_SMALL if they do not fit. The job is kept in both cases.
 *
 * The caller's duties:
 * `job` is NULL or writable; `released_count` is NULL or readable and writable; `released` is NULL or as many numbers are writable
 * there.
 */
kvc_status kvc_directory_next_ended(struct kvc_directory *directory,
                                    uint64_t *job,
                                    uint32_t *released,
                                    size_t *released_count);

/**
 * Forgets every block, here, on the ranks and for restarts: what was computed before is not served after, as when weights change.
 */
kvc_status kvc_directory_reset(struct kvc_directory *directory);

/**
 * Whether the engine has to go on making steps, if need be empty ones, for jobs to end: `*pending` is 1 or 0.
 *
 * The caller's duties:
 * `pending` is NULL or writable.
 */
kvc_status kvc_directory_has_pending_work(struct kvc_directory *directory, int32_t *pending);

/**
 * Every count of a directory, as kvc_stats_json.
 *
 * The caller's duties:
 * As kvc_stats_json.
 */
kvc_status kvc_directory_stats_json(const struct kvc_directory *directory, char *buffer, size_t *bytes);

/**
 * Every count of a directory in Prometheus' text format, as kvc_stats_prometheus.
 *
 * The caller's duties:
 * As kvc_stats_prometheus.
 */
kvc_status kvc_directory_stats_prometheus(const struct kvc_directory *directory,
                                          const char *name,
                                          char *buffer,
                                          size_t *bytes);

/**
 * Opens the store of one rank over the engine's memory. `config_json` is an object of settings, which docs/c-engine.md lists;
 * "slot_blocks" and "capacity_bytes" are needed. The header's macro of the same name passes the header's version as well.
 *
 * Errors: KVC_BAD_CONFIG names the value and the remedy; KVC_SYSTEM if memory or a thread is refused; KVC_UNAVAILABLE if the
 * device cannot be used. Any thread.
 *
 * The caller's duties:
 * `config_json` is NULL or ends with a NUL; `layers` is NULL or `layer_count` layers, each of the size that it says, all of one
 * size; their memory is what they say, until the store is closed, and is used by others only as plans and reports allow; `out` is
 * NULL or writable.
 */
kvc_status kvc_store_open_for_abi(uint32_t abi_version,
                                  const char *config_json,
                                  const struct kvc_layer *layers,
                                  size_t layer_count,
                                  struct kvc_store **out);

/**
 * Closes a store: ends what is in flight, then gives the memory back. The engine's memory may go after that. NULL is allowed, and so is
 * a store that was closed before. Any thread, but not the log callback.
 */
void kvc_store_close(struct kvc_store *store);

/**
 * A step begins, with the directory's plan; 0 bytes for a step without one. `*loads` is 1 if it loads layer by layer, so that
 * kvc_store_wait_layer has to be called, and `*offloads` 1 if it offloads, so that kvc_store_store_layer should be.
 *
 * Errors: KVC_MALFORMED if the bytes are no plan of the same library version.
 *
 * The caller's duties:
 * `plan` is NULL or `bytes` bytes; `stream` is NULL or readable; `loads` and `offloads` are NULL or writable.
 */
kvc_status kvc_store_begin_step(struct kvc_store *store,
                                const void *plan,
                                size_t bytes,
                                const uint64_t *stream,
                                int32_t *loads,
                                int32_t *offloads);

/**
 * Starts this step's loads: before the first layer.
 */
kvc_status kvc_store_start_loads(struct kvc_store *store);

/**
 * Returns when the blocks of layer `layer` (and of those before it) are loaded, copying meanwhile; with a stream at once, and the
 * stream waits. Before each layer, or once with the last one before a forward pass whose layers cannot call it.
 *
 * The caller's duties:
 * `stream` is NULL or readable.
 */
kvc_status kvc_store_wait_layer(struct kvc_store *store,
                                size_t layer,
                                const uint64_t *stream);

/**
 * Layer `layer` has been computed, or is by the time that the stream gets here: its part of the step's offloads begins.
 *
 * The caller's duties:
 * `stream` is NULL or readable.
 */
kvc_status kvc_store_store_layer(struct kvc_store *store,
                                 size_t layer,
                                 const uint64_t *stream);

/**
 * The forward pass is over. `end` is a kvc_step_end. `*busy` is 1 while any job of this rank has not ended.
 *
 * The caller's duties:
 * `stream` is NULL or readable; `busy` is NULL or writable.
 */
kvc_status kvc_store_end_step(struct kvc_store *store, int32_t end, const uint64_t *stream, int32_t *busy);

/**
 * For steps without work: waits until a value has come from L2 or got there, for `timeout_ms` milliseconds at most, if that is all
 * there is to wait for.
 */
kvc_status kvc_store_rest(struct kvc_store *store,
                          uint64_t timeout_ms);

/**
 * This rank's report for the directory's kvc_directory_absorb; 0 bytes if there is nothing to say. Sizes as with
 * kvc_directory_take_plan: a report that does not fit is kept.
 *
 * The caller's duties:
 * `buffer` is NULL or `*bytes` bytes are writable there; `bytes` is NULL or readable and writable.
 */
kvc_status kvc_store_take_report(struct kvc_store *store,
                                 void *buffer,
                                 size_t *bytes);

/**
 * A request whose load between steps has ended: its name with a NUL, and in `*loaded` 1, or 0 if its blocks are not what was promised
 * (kvc_store_take_load_errors has them then). KVC_PENDING if there is none.
 *
 * `*bytes` is the size of `request` when the call is made and that of the name when it returns. With `request` NULL only the size is
 * said; KVC_BUFFER_TOO_SMALL if it does not fit. The request is kept in both cases.
 *
 * The caller's duties:
 * `request` is NULL or `*bytes` bytes are writable there; `bytes` is NULL or readable and writable; `loaded` is NULL or writable.
 */
kvc_status kvc_store_next_received(struct kvc_store *store,
                                   char *request,
                                   size_t *bytes,
                                   int32_t *loaded);

/**
 * Engine blocks that were promised and not loaded: what they hold is undefined, and their tokens have to be computed. `*count` is the
 * room in `blocks` when the call is made and their number when it returns; with `blocks` NULL only that is said, and
 * KVC_BUFFER_TOO_SMALL if they do not fit. They are kept in both cases.
 *
 * The caller's duties:
 * `blocks` is NULL or `*count` numbers are writable there; `count` is NULL or readable and writable.
 */
kvc_status kvc_store_take_load_errors(struct kvc_store *store,
                                      uint32_t *blocks,
                                      size_t *count);

/**
 * Every count of a store, as kvc_stats_json.
 *
 * The caller's duties:
 * As kvc_stats_json.
 */
kvc_status kvc_store_stats_json(const struct kvc_store *store, char *buffer, size_t *bytes);

/**
 * Every count of a store in Prometheus' text format, as kvc_stats_prometheus.
 *
 * The caller's duties:
 * As kvc_stats_prometheus.
 */
kvc_status kvc_store_stats_prometheus(const struct kvc_store *store,
                                      const char *name,
                                      char *buffer,
                                      size_t *bytes);

/**
 * What is wrong now, one line each, as kvc_problems: memory that could not be pinned, copies that failed, a device that was lost.
 *
 * The caller's duties:
 * As kvc_stats_json.
 */
kvc_status kvc_store_problems(const struct kvc_store *store,
                              char *buffer,
                              size_t *bytes);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* KVCACHE_H */

#ifndef KVCACHE_H_MACROS
#define KVCACHE_H_MACROS

/* A header that is newer than the library is an error of the first call. */
#define kvc_open(config_json, out) kvc_open_for_abi(KVC_ABI_VERSION, (config_json), (out))

#define kvc_directory_open(config_json, out) kvc_directory_open_for_abi(KVC_ABI_VERSION, (config_json), (out))
#define kvc_store_open(config_json, layers, layer_count, out) \
    kvc_store_open_for_abi(KVC_ABI_VERSION, (config_json), (layers), (layer_count), (out))

/* A configuration with nothing set. */
static inline kvc_config kvc_config_init(void) {
    kvc_config config;
    memset(&config, 0, sizeof config);
    config.struct_size = sizeof config;
    config.abi_version = KVC_ABI_VERSION;
    return config;
}

/* A request without limits. */
static inline kvc_request kvc_request_init(void) {
    kvc_request request;
    memset(&request, 0, sizeof request);
    request.struct_size = sizeof request;
    return request;
}

/* A layer of nothing. */
static inline kvc_layer kvc_layer_init(void) {
    kvc_layer layer;
    memset(&layer, 0, sizeof layer);
    layer.struct_size = sizeof layer;
    return layer;
}

#endif  /* KVCACHE_H_MACROS */
