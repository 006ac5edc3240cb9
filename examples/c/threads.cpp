// Several threads of an engine share one cache. Loads run in the background: one epoll loop over the cache's event file descriptor
// takes each when it has ended, instead of waiting for one after the other.
//
//     c++ -std=c++17 -pthread threads.cpp $(pkg-config --cflags --libs kvcache) -o threads && ./threads

#include <kvcache.hpp>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#include <unordered_map>
#include <vector>

#include <sys/epoll.h>
#include <unistd.h>

namespace {

constexpr std::size_t block_tokens = 16;
constexpr std::size_t block_bytes = 4096;
constexpr std::size_t blocks = 8; // of a prompt
constexpr int writers = 3;
constexpr int prompts_each = 20;
constexpr int prompts = writers * prompts_each;

// An engine would go on without the cache. An example may stop.
template <typename T> T check(kvcache::result<T> result, const char *what) {
    if (!result) {
        std::fprintf(stderr, "%s: %s\n", what, result.error().c_str());
        std::exit(1);
    }
    return std::move(result).value();
}

std::vector<std::int32_t> tokens_of(int prompt) {
    std::vector<std::int32_t> tokens(blocks * block_tokens);
    for (std::size_t place = 0; place < tokens.size(); ++place) {
        tokens[place] = static_cast<std::int32_t>(static_cast<std::size_t>(prompt) * 1000 + place);
    }
    return tokens;
}

std::uint8_t byte_of(int prompt, std::size_t place) {
    return static_cast<std::uint8_t>(static_cast<std::size_t>(prompt) * 101 + place + place / block_bytes);
}

kvcache::keys keys_of(const kvcache::cache &cache, int prompt) {
    const auto tokens = tokens_of(prompt);
    return check(cache.hash_tokens(tokens.data(), tokens.size(), block_tokens), "hash_tokens");
}

// Stores every writers-th prompt.
void write(kvcache::cache &cache, int first) {
    std::vector<std::uint8_t> data(blocks * block_bytes);
    for (int prompt = first; prompt < prompts; prompt += writers) {
        for (std::size_t place = 0; place < data.size(); ++place) {
            data[place] = byte_of(prompt, place);
        }
        const auto stored = check(cache.put(keys_of(cache, prompt), data.data(), data.size()), "put");
        if (stored != blocks) {
            std::fprintf(stderr, "prompt %d: %zu blocks are stored\n", prompt, stored);
            std::exit(1);
        }
    }
}

struct load {
    int prompt = 0;
    std::vector<std::uint8_t> out; // must stay where it is until the ticket has ended
};

// Loads all prompts at once and takes each when it is there. Returns how many came whole.
int load_all(kvcache::cache &cache) {
    std::unordered_map<kvcache::ticket, std::unique_ptr<load>> loading;
    for (int prompt = 0; prompt < prompts; ++prompt) {
        auto begun = std::make_unique<load>();
        begun->prompt = prompt;
        begun->out.resize(blocks * block_bytes);
        const auto ticket = check(cache.get_async(keys_of(cache, prompt), {begun->out.data(), begun->out.size()}), "get_async");
        loading.emplace(ticket, std::move(begun));
    }

    const int event_fd = check(cache.event_fd(), "event_fd");
    const int loop = epoll_create1(EPOLL_CLOEXEC);
    epoll_event wanted{};
    wanted.events = EPOLLIN;
    if (loop < 0 || epoll_ctl(loop, EPOLL_CTL_ADD, event_fd, &wanted) != 0) {
        std::perror("epoll");
        std::exit(1);
    }
    int whole = 0;
    while (!loading.empty()) {
        epoll_event event{};
        if (epoll_wait(loop, &event, 1, 10000) != 1) {
            std::fprintf(stderr, "%zu loads have not ended\n", loading.size());
            std::exit(1);
        }
        std::uint64_t events = 0;
        if (read(event_fd, &events, sizeof events) != static_cast<ssize_t>(sizeof events)) {
            continue;
        }
        // Read first, then ask: what ends in between makes the descriptor readable again.
        for (;;) {
            const auto ended = check(cache.ended(), "ended");
            if (ended.empty()) {
                break;
            }
            for (const auto ticket : ended) {
                const auto found = loading.find(ticket);
                const std::size_t count = check(cache.poll(ticket), "poll");
                bool equal = count == blocks;
                for (std::size_t place = 0; place < count * block_bytes; ++place) {
                    equal = equal && found->second->out[place] == byte_of(found->second->prompt, place);
                }
                if (!equal) {
                    std::fprintf(stderr, "prompt %d: %zu blocks, or wrong bytes\n", found->second->prompt, count);
                    std::exit(1);
                }
                whole += 1;
                loading.erase(found);
            }
        }
    }
    close(loop);
    return whole;
}

} // namespace

int main() {
    kvc_config config = kvc_config_init();
    config.block_bytes = block_bytes;
    config.capacity_bytes = prompts * blocks * block_bytes;
    config.copy_threads = 1;
    kvcache::cache cache = check(kvcache::cache::open(config), "open");

    std::vector<std::thread> threads;
    std::atomic<bool> is_done{false};
    for (int writer = 0; writer < writers; ++writer) {
        threads.emplace_back([&cache, writer] { write(cache, writer); });
    }
    // Whoever asks meanwhile sees a prefix of each prompt, never a wrong answer.
    std::thread asking([&] {
        do {
            for (int prompt = 0; prompt < prompts; ++prompt) {
                if (check(cache.match(keys_of(cache, prompt)), "match") > blocks) {
                    std::exit(1);
                }
            }
        } while (!is_done.load());
    });
    for (auto &thread : threads) {
        thread.join();
    }
    is_done.store(true);
    asking.join();

    std::printf("%d prompts are stored, %d loaded with the right bytes\n", prompts, load_all(cache));
    return 0;
}
