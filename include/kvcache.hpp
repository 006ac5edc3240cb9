// libkvcache for C++17 and newer: handles that close themselves, and results instead of exceptions.
//
// Everything here is a thin call of kvcache.h, which says what each function does, what it costs and when its memory may go. The
// header needs neither exceptions nor RTTI, throws nothing itself, and can be used beside the C functions: see cache::handle.
//
//     auto opened = kvcache::cache::open(R"({"block_bytes": 65536, "capacity_bytes": "1GiB"})");
//     if (!opened) { std::fprintf(stderr, "%s\n", opened.error().c_str()); return 1; }
//     kvcache::cache cache = std::move(opened).value();
//     kvcache::keys keys = cache.hash_tokens(tokens.data(), tokens.size(), 16).value();
//     size_t stored = cache.put(keys, data, bytes).value();

#ifndef KVCACHE_HPP
#define KVCACHE_HPP

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#if __cplusplus >= 202002L
#include <span>
#endif

#include "kvcache.h"

namespace kvcache {

/// Bytes of a key.
inline constexpr std::size_t key_bytes = 16;

/// A value, or why there is none: the status and a copy of the library's words, which stay when the next call fails.
///
/// `value()` of a failure is an empty value (0, an empty text, no cache), never undefined: a count of 0 blocks is a miss. Whoever has to
/// tell a failure from a miss looks at `status()`.
template <typename T> class [[nodiscard]] result {
  public:
    result(T value) : value_(std::move(value)) {}

    /// What the call of this thread that just returned `status` has left behind.
    static result of_failure(kvc_status status) {
        result failed{T{}};
        failed.status_ = status;
        if (status != KVC_PENDING) {
            failed.error_ = kvc_last_error();
        }
        return failed;
    }

    /// What a call that returned `status` and made `value` comes to.
    static result finished(kvc_status status, T value) {
        if (status == KVC_OK) {
            return result(std::move(value));
        }
        return of_failure(status);
    }

    kvc_status status() const noexcept { return status_; }
    bool ok() const noexcept { return status_ == KVC_OK; }
    explicit operator bool() const noexcept { return ok(); }
    /// The work has not ended: ask again.
    bool pending() const noexcept { return status_ == KVC_PENDING; }
    /// One line with the value and the remedy; empty unless the call failed.
    const std::string &error() const noexcept { return error_; }

    T &value() & noexcept { return value_; }
    const T &value() const & noexcept { return value_; }
    T &&value() && noexcept { return std::move(value_); }

  private:
    T value_;
    kvc_status status_ = KVC_OK;
    std::string error_;
};

/// A result of calls that have no value.
struct done {};

/// Names of blocks, one after the other.
class keys {
  public:
    keys() = default;
    explicit keys(std::vector<std::uint8_t> bytes) noexcept : bytes_(std::move(bytes)) {}

    /// The number of whole keys.
    std::size_t size() const noexcept { return bytes_.size() / key_bytes; }
    bool empty() const noexcept { return size() == 0; }
    const std::uint8_t *data() const noexcept { return bytes_.data(); }
    /// The key of block `index`, which is below size().
    const std::uint8_t *operator[](std::size_t index) const noexcept { return data() + index * key_bytes; }
    /// The last key, as the parent of what follows; NULL if there is none.
    const std::uint8_t *last() const noexcept { return empty() ? nullptr : (*this)[size() - 1]; }
    /// Puts the keys of the blocks after these behind them.
    void append(const keys &more) { bytes_.insert(bytes_.end(), more.bytes_.begin(), more.bytes_.end()); }

  private:
    std::vector<std::uint8_t> bytes_;
};

/// Keys that lie anywhere: [count][16] bytes.
struct key_view {
    key_view(const keys &all) noexcept : data(all.data()), count(all.size()) {}
    key_view(const std::uint8_t *first, std::size_t blocks) noexcept : data(first), count(blocks) {}
#if __cplusplus >= 202002L
    key_view(std::span<const std::uint8_t> bytes) noexcept : data(bytes.data()), count(bytes.size() / key_bytes) {}
#endif

    const std::uint8_t *data;
    std::size_t count;
};

/// Bytes to read or to write.
template <typename Byte> struct basic_bytes {
    basic_bytes(Byte *first, std::size_t count) noexcept : data(first), size(count) {}
#if __cplusplus >= 202002L
    template <typename T, std::size_t Extent>
    basic_bytes(std::span<T, Extent> items) noexcept : data(items.data()), size(items.size_bytes()) {}
#endif

    Byte *data;
    std::size_t size;
};
using bytes = basic_bytes<const void>;
using mutable_bytes = basic_bytes<void>;

/// Pieces of blocks: [blocks][count / blocks].
struct segment_view {
    segment_view(const kvc_segment *first, std::size_t segments) noexcept : data(first), count(segments) {}
    segment_view(const std::vector<kvc_segment> &all) noexcept : data(all.data()), count(all.size()) {}

    const kvc_segment *data;
    std::size_t count;
};

/// Leading blocks that stay where they are, to be read, until this goes. See kvc_lease_blocks.
class lease {
  public:
    lease() noexcept = default;
    ~lease() { release(); }
    lease(lease &&other) noexcept
        : handle_(std::exchange(other.handle_, nullptr)), addresses_(std::move(other.addresses_)) {}
    lease &operator=(lease &&other) noexcept {
        if (this != &other) {
            release();
            handle_ = std::exchange(other.handle_, nullptr);
            addresses_ = std::move(other.addresses_);
        }
        return *this;
    }
    lease(const lease &) = delete;
    lease &operator=(const lease &) = delete;

    /// The number of leading blocks.
    std::size_t size() const noexcept { return addresses_.size(); }
    /// Where block `index`, which is below size(), begins.
    const void *operator[](std::size_t index) const noexcept { return addresses_[index]; }
    /// Releases it early: its blocks must not be read any more.
    void release() noexcept {
        addresses_.clear();
        kvc_lease_release(std::exchange(handle_, nullptr));
    }

  private:
    friend class cache;
    kvc_lease *handle_ = nullptr;
    std::vector<const void *> addresses_;
};

/// Slots to be written where they are. Unless it is committed, its blocks are no hits. See kvc_reserve.
class fill {
  public:
    fill() noexcept = default;
    ~fill() { abandon(); }
    fill(fill &&other) noexcept
        : handle_(std::exchange(other.handle_, nullptr)), addresses_(std::move(other.addresses_)), reach_(other.reach_) {}
    fill &operator=(fill &&other) noexcept {
        if (this != &other) {
            abandon();
            handle_ = std::exchange(other.handle_, nullptr);
            addresses_ = std::move(other.addresses_);
            reach_ = other.reach_;
        }
        return *this;
    }
    fill(const fill &) = delete;
    fill &operator=(const fill &) = delete;

    /// The number of leading blocks that are present or have an address.
    std::size_t reach() const noexcept { return reach_; }
    /// The number of blocks that were asked for.
    std::size_t size() const noexcept { return addresses_.size(); }
    /// Where to write block `index`, which is below size(); NULL if there is nothing to write.
    void *operator[](std::size_t index) const noexcept { return addresses_[index]; }
    /// The first `written` blocks with an address are written; leading blocks that the cache holds then. See kvc_commit.
    inline result<std::size_t> commit(std::size_t written = SIZE_MAX);
    /// Gives all slots back. Nobody writes to them any more.
    void abandon() noexcept {
        addresses_.clear();
        kvc_abandon(std::exchange(handle_, nullptr));
    }

  private:
    friend class cache;
    kvc_fill *handle_ = nullptr;
    std::vector<void *> addresses_;
    std::size_t reach_ = 0;
};

/// Stands for work in the background until its end is told, once, by poll or wait.
using ticket = std::uint64_t;

/// A cache of blocks of one size. It can be moved, not copied, and is closed when it goes. All functions may be called from any number
/// of threads at a time, except those that change the object itself: moving, close and the destructor.
class cache {
  public:
    /// No cache: every call is KVC_NULL_ARGUMENT.
    cache() noexcept = default;
    ~cache() { close(); }
    cache(cache &&other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
    cache &operator=(cache &&other) noexcept {
        if (this != &other) {
            close();
            handle_ = std::exchange(other.handle_, nullptr);
        }
        return *this;
    }
    cache(const cache &) = delete;
    cache &operator=(const cache &) = delete;

    /// See kvc_open.
    static result<cache> open(const char *config_json) {
        cache opened;
        const kvc_status status = kvc_open(config_json, &opened.handle_);
        return finished(status, std::move(opened));
    }
    static result<cache> open(const std::string &config_json) { return open(config_json.c_str()); }

    /// See kvc_open_config; kvc_config_init makes a configuration.
    static result<cache> open(const kvc_config &config) {
        cache opened;
        const kvc_status status = kvc_open_config(&config, &opened.handle_);
        return finished(status, std::move(opened));
    }

    /// Closes it early. See kvc_close.
    void close() noexcept { kvc_close(std::exchange(handle_, nullptr)); }
    /// For the functions of kvcache.h. It stays this object's.
    kvc_cache *handle() const noexcept { return handle_; }
    explicit operator bool() const noexcept { return handle_ != nullptr; }

    /// See kvc_hash_tokens_after. `parent` is the last key before these tokens, or NULL for the first tokens of a prompt.
    result<keys> hash_tokens(const std::int32_t *tokens, std::size_t count, std::size_t block_tokens, bytes extra = {nullptr, 0},
                             const std::uint8_t *parent = nullptr) const {
        std::vector<std::uint8_t> made(block_tokens == 0 ? 0 : count / block_tokens * key_bytes);
        std::size_t blocks = 0;
        const kvc_status status = kvc_hash_tokens_after(handle_, parent, tokens, count, block_tokens, extra.data, extra.size,
                                                        made.data(), &blocks);
        return finished(status, keys(std::move(made)));
    }
#if __cplusplus >= 202002L
    result<keys> hash_tokens(std::span<const std::int32_t> tokens, std::size_t block_tokens, bytes extra = {nullptr, 0},
                             const std::uint8_t *parent = nullptr) const {
        return hash_tokens(tokens.data(), tokens.size(), block_tokens, extra, parent);
    }
#endif

    /// Leading blocks that are present. See kvc_match.
    result<std::size_t> match(key_view keys) const {
        std::size_t leading = 0;
        const kvc_status status = kvc_match(handle_, keys.data, keys.count, &leading);
        return finished(status, leading);
    }

    /// Leading blocks that the cache holds then. See kvc_put.
    result<std::size_t> put(key_view keys, bytes data) {
        std::size_t stored = 0;
        const kvc_status status = kvc_put(handle_, keys.data, keys.count, data.data, data.size, &stored);
        return finished(status, stored);
    }
    result<std::size_t> put(key_view keys, const void *data, std::size_t size) { return put(keys, bytes(data, size)); }

    /// Leading blocks that were copied. See kvc_get.
    result<std::size_t> get(key_view keys, mutable_bytes out) {
        std::size_t loaded = 0;
        const kvc_status status = kvc_get(handle_, keys.data, keys.count, out.data, out.size, &loaded);
        return finished(status, loaded);
    }
    result<std::size_t> get(key_view keys, void *out, std::size_t size) { return get(keys, mutable_bytes(out, size)); }

    /// The same for blocks in pieces. See kvc_put_segments.
    result<std::size_t> put(key_view keys, segment_view pieces) {
        std::size_t stored = 0;
        const kvc_status status = kvc_put_segments(handle_, keys.data, keys.count, pieces.data, pieces.count, &stored);
        return finished(status, stored);
    }
    /// See kvc_get_segments.
    result<std::size_t> get(key_view keys, segment_view pieces) {
        std::size_t loaded = 0;
        const kvc_status status = kvc_get_segments(handle_, keys.data, keys.count, pieces.data, pieces.count, &loaded);
        return finished(status, loaded);
    }

    /// Leading blocks of L1, to be read where they are. See kvc_lease_blocks.
    result<kvcache::lease> lease(key_view keys) {
        kvcache::lease leased;
        leased.addresses_.resize(keys.count);
        std::size_t leading = 0;
        const kvc_status status =
            kvc_lease_blocks(handle_, keys.data, keys.count, leased.addresses_.data(), &leading, &leased.handle_);
        leased.addresses_.resize(leading);
        return finished(status, std::move(leased));
    }

    /// Slots for absent blocks, to be written where they are. See kvc_reserve.
    result<kvcache::fill> reserve(key_view keys) {
        kvcache::fill reserved;
        reserved.addresses_.resize(keys.count);
        const kvc_status status = kvc_reserve(handle_, keys.data, keys.count, reserved.addresses_.data(), &reserved.reach_,
                                              &reserved.handle_);
        return finished(status, std::move(reserved));
    }

    /// Blocks that were there. See kvc_delete.
    result<std::size_t> erase(key_view keys) {
        std::size_t deleted = 0;
        const kvc_status status = kvc_delete(handle_, keys.data, keys.count, &deleted);
        return finished(status, deleted);
    }

    /// See kvc_clear.
    result<done> clear() { return finished(kvc_clear(handle_), done{}); }

    /// Pending if the time is up. See kvc_flush.
    result<done> flush(std::uint64_t timeout_ms) { return finished(kvc_flush(handle_, timeout_ms), done{}); }

    /// The memory of `data` must stay until the ticket has ended. See kvc_put_async.
    result<ticket> put_async(key_view keys, bytes data) {
        ticket number = 0;
        const kvc_status status = kvc_put_async(handle_, keys.data, keys.count, data.data, data.size, &number);
        return finished(status, number);
    }

    /// The memory of `out` must stay until the ticket has ended. See kvc_get_async.
    result<ticket> get_async(key_view keys, mutable_bytes out) {
        ticket number = 0;
        const kvc_status status = kvc_get_async(handle_, keys.data, keys.count, out.data, out.size, &number);
        return finished(status, number);
    }

    /// The memory that the pieces name must stay until the ticket has ended. See kvc_put_segments_async.
    result<ticket> put_async(key_view keys, segment_view pieces) {
        ticket number = 0;
        const kvc_status status =
            kvc_put_segments_async(handle_, keys.data, keys.count, pieces.data, pieces.count, &number);
        return finished(status, number);
    }
    /// See kvc_get_segments_async.
    result<ticket> get_async(key_view keys, segment_view pieces) {
        ticket number = 0;
        const kvc_status status =
            kvc_get_segments_async(handle_, keys.data, keys.count, pieces.data, pieces.count, &number);
        return finished(status, number);
    }

    /// See kvc_prefetch_async.
    result<ticket> prefetch_async(key_view keys) {
        ticket number = 0;
        const kvc_status status = kvc_prefetch_async(handle_, keys.data, keys.count, &number);
        return finished(status, number);
    }

    /// The outcome of a ticket, once; pending before its end. See kvc_poll.
    result<std::size_t> poll(ticket number) {
        std::size_t blocks = 0;
        const kvc_status status = kvc_poll(handle_, number, &blocks);
        return finished(status, blocks);
    }

    /// The same, after waiting for it. See kvc_wait.
    result<std::size_t> wait(ticket number, std::uint64_t timeout_ms) {
        std::size_t blocks = 0;
        const kvc_status status = kvc_wait(handle_, number, timeout_ms, &blocks);
        return finished(status, blocks);
    }

    /// Up to `limit` tickets that have ended; each has to be polled. See kvc_ended.
    result<std::vector<ticket>> ended(std::size_t limit = 64) {
        std::vector<ticket> tickets(limit);
        std::size_t count = 0;
        const kvc_status status = kvc_ended(handle_, tickets.data(), limit, &count);
        tickets.resize(count);
        return finished(status, std::move(tickets));
    }

    /// Readable when a ticket has ended; it stays the cache's. See kvc_event_fd.
    result<std::int32_t> event_fd() const {
        std::int32_t fd = -1;
        const kvc_status status = kvc_event_fd(handle_, &fd);
        return finished(status, fd);
    }

    /// See kvc_stats_json.
    result<std::string> stats_json() const {
        return text([this](char *buffer, std::size_t *size) { return kvc_stats_json(handle_, buffer, size); });
    }

    /// See kvc_stats_prometheus.
    result<std::string> stats_prometheus(const char *name = nullptr) const {
        return text([this, name](char *buffer, std::size_t *size) {
            return kvc_stats_prometheus(handle_, name, buffer, size);
        });
    }

    /// See kvc_problems.
    result<std::string> problems() const {
        return text([this](char *buffer, std::size_t *size) { return kvc_problems(handle_, buffer, size); });
    }

  private:
    template <typename T> static result<T> finished(kvc_status status, T value) {
        return result<T>::finished(status, std::move(value));
    }

    /// A text whose size is asked for first. It may have grown when it is asked for the second time.
    template <typename Ask> static result<std::string> text(Ask ask) {
        std::size_t size = 0;
        kvc_status status = ask(nullptr, &size);
        while (status == KVC_OK || status == KVC_BUFFER_TOO_SMALL) {
            size += 64;
            std::string buffer(size, '\0');
            status = ask(&buffer[0], &size);
            if (status == KVC_OK) {
                buffer.resize(size - 1); // without its NUL
                return result<std::string>(std::move(buffer));
            }
        }
        return result<std::string>::of_failure(status);
    }

    kvc_cache *handle_ = nullptr;
};

result<std::size_t> fill::commit(std::size_t written) {
    addresses_.clear();
    std::size_t held = 0;
    const kvc_status status = kvc_commit(std::exchange(handle_, nullptr), written, &held);
    return result<std::size_t>::finished(status, held);
}

} // namespace kvcache

#endif
