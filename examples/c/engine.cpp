// A small inference engine that keeps its KV cache with libkvcache: the scheduler decides in one thread, a rank computes and copies in
// another, and only bytes go between them, as they would between two processes.
//
//     c++ -std=c++17 -pthread engine.cpp $(pkg-config --cflags --libs kvcache) -o engine && ./engine
//
// Its "KV cache" is a pattern that follows from the tokens before it, so that every loaded byte can be checked against what would have
// been computed. It answers some prompts, forgets everything, and answers them again: layer by layer within a step, then between
// steps. The second answers have to come from the cache.

#include <kvcache.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr size_t kLayers = 4;
constexpr size_t kBlockTokens = 16;
constexpr size_t kTokenBytes = 64; // keys and values of a token, in one layer
constexpr size_t kPageBytes = kBlockTokens * kTokenBytes;
constexpr uint32_t kBlocks = 96; // pages of the engine

[[noreturn]] void fail(const char *what) {
    std::fprintf(stderr, "%s: %s\n", what, kvc_last_error());
    std::exit(1);
}

void check(kvc_status status, const char *what) {
    if (status != KVC_OK) {
        fail(what);
    }
}

double now_s() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The KV cache of token `position` depends on all tokens up to it.
uint64_t state_after(uint64_t state, int32_t token) {
    return (state ^ static_cast<uint64_t>(token)) * 0x9E3779B97F4A7C15ull + 1;
}

// A queue between two threads; bytes alone go through it.
template <typename T> class Channel {
  public:
    void send(T item) {
        std::lock_guard<std::mutex> lock(mutex_);
        items_.push_back(std::move(item));
        waiting_.notify_one();
    }
    T receive() {
        std::unique_lock<std::mutex> lock(mutex_);
        waiting_.wait(lock, [this] { return !items_.empty(); });
        T item = std::move(items_.front());
        items_.pop_front();
        return item;
    }

  private:
    std::mutex mutex_;
    std::condition_variable waiting_;
    std::deque<T> items_;
};

// What a rank has to compute of one request in a step: tokens from `first` on. Those before it are in its blocks already.
struct Work {
    std::vector<int32_t> tokens;
    std::vector<uint32_t> blocks;
    size_t first = 0;
};

struct Step {
    std::vector<uint8_t> plan;
    std::vector<Work> work;
    bool is_last = false;
};

struct StepResult {
    std::vector<uint8_t> report;
    std::vector<std::string> received;
    size_t wrong_bytes = 0;
    bool is_busy = false;
};

// One rank: its pages in memory, and the store that loads and offloads them.
class Rank {
  public:
    explicit Rank(const std::string &config) : pages_(kLayers * kBlocks * kPageBytes) {
        std::vector<kvc_layer> layers(kLayers);
        std::vector<std::string> names;
        for (size_t layer = 0; layer < kLayers; ++layer) {
            names.push_back("layer." + std::to_string(layer));
        }
        for (size_t layer = 0; layer < kLayers; ++layer) {
            layers[layer] = kvc_layer_init();
            layers[layer].name = names[layer].c_str();
            layers[layer].base = page(layer, 0);
            layers[layer].block_stride = kPageBytes;
            layers[layer].block_count = kBlocks;
            layers[layer].segments = 1;
            layers[layer].segment_stride = kPageBytes;
            layers[layer].segment_bytes = kPageBytes;
        }
        check(kvc_store_open(config.c_str(), layers.data(), layers.size(), &store_), "kvc_store_open");
    }
    Rank(const Rank &) = delete;
    ~Rank() { kvc_store_close(store_); }

    // The engine's memory is needed for something else.
    void forget() { std::memset(pages_.data(), 0xEE, pages_.size()); }

    StepResult run(const Step &step) {
        StepResult result;
        int32_t loads = 0, offloads = 0, busy = 0;
        check(kvc_store_begin_step(store_, step.plan.data(), step.plan.size(), nullptr, &loads, &offloads), "begin_step");
        check(kvc_store_start_loads(store_), "start_loads");
        for (size_t layer = 0; layer < kLayers; ++layer) {
            if (loads) {
                check(kvc_store_wait_layer(store_, layer, nullptr), "wait_layer");
            }
            for (const Work &work : step.work) {
                result.wrong_bytes += compute(layer, work);
            }
            if (offloads) {
                check(kvc_store_store_layer(store_, layer, nullptr), "store_layer");
            }
        }
        check(kvc_store_end_step(store_, step.is_last ? KVC_STEP_LAST : KVC_STEP_GO_ON, nullptr, &busy), "end_step");
        result.is_busy = busy != 0;
        receive(result.received);
        size_t bytes = 0;
        check(kvc_store_take_report(store_, nullptr, &bytes), "take_report");
        result.report.resize(bytes);
        if (bytes > 0) {
            check(kvc_store_take_report(store_, result.report.data(), &bytes), "take_report");
        }
        uint32_t lost[kBlocks];
        size_t lost_count = kBlocks;
        check(kvc_store_take_load_errors(store_, lost, &lost_count), "take_load_errors");
        if (lost_count > 0) {
            // A real engine computes their tokens again. Nothing fails here, so nothing may be lost.
            fail("blocks were promised and not loaded");
        }
        return result;
    }

  private:
    uint8_t *page(size_t layer, uint32_t block) { return &pages_[(layer * kBlocks + block) * kPageBytes]; }

    uint8_t *token(size_t layer, const Work &work, size_t position) {
        return page(layer, work.blocks[position / kBlockTokens]) + position % kBlockTokens * kTokenBytes;
    }

    // One layer of one request. "Attention" reads the KV cache of all tokens before: here, it counts bytes that are not what they
    // should be.
    size_t compute(size_t layer, const Work &work) {
        size_t wrong = 0;
        uint64_t state = layer + 1;
        for (size_t position = 0; position < work.tokens.size(); ++position) {
            state = state_after(state, work.tokens[position]);
            uint8_t expected[kTokenBytes];
            for (size_t byte = 0; byte < kTokenBytes; ++byte) {
                expected[byte] = static_cast<uint8_t>(state >> (byte % 8 * 8)) ^ static_cast<uint8_t>(byte);
            }
            uint8_t *place = token(layer, work, position);
            if (position < work.first) {
                wrong += std::memcmp(place, expected, kTokenBytes) != 0;
            } else {
                std::memcpy(place, expected, kTokenBytes);
            }
        }
        return wrong;
    }

    void receive(std::vector<std::string> &received) {
        for (;;) {
            char name[64];
            size_t bytes = sizeof name;
            int32_t loaded = 0;
            kvc_status status = kvc_store_next_received(store_, name, &bytes, &loaded);
            if (status == KVC_PENDING) {
                return;
            }
            check(status, "next_received");
            if (!loaded) {
                fail("a load has failed");
            }
            received.push_back(name);
        }
    }

    std::vector<uint8_t> pages_;
    kvc_store *store_ = nullptr;
};

// The scheduler: knows requests and page numbers, and no bytes.
class Scheduler {
  public:
    Scheduler(const std::string &config, Channel<Step> &steps, Channel<StepResult> &results) : steps_(steps), results_(results) {
        check(kvc_directory_open(config.c_str(), &directory_), "kvc_directory_open");
        for (uint32_t block = kBlocks; block > 1; --block) {
            free_.push_back(block - 1); // block 0 stands for no block
        }
    }
    Scheduler(const Scheduler &) = delete;
    ~Scheduler() { kvc_directory_close(directory_); }

    // Answers one prompt; how many of its tokens came from the cache.
    size_t answer(const std::string &name, const std::vector<int32_t> &tokens) {
        const char *request = name.c_str();
        kvc_request options = kvc_request_init();
        options.prompt_tokens = tokens.size();
        check(kvc_directory_add_request(directory_, request, &options), "add_request");
        check(kvc_directory_extend_tokens(directory_, request, tokens.data(), tokens.size()), "extend_tokens");

        size_t external = 0;
        int32_t asynchronous = 0;
        kvc_status status;
        while ((status = kvc_directory_lookup(directory_, request, 0, tokens.size(), now_s(), &external, &asynchronous)) ==
               KVC_PENDING) {
            step({}, 0);
        }
        check(status, "lookup");

        Work work{tokens, {}, external};
        for (size_t token = 0; token < tokens.size(); token += kBlockTokens) {
            if (free_.empty()) {
                fail("the engine has no free blocks");
            }
            work.blocks.push_back(free_.back());
            free_.pop_back();
        }
        kvc_block_table table{work.blocks.data(), work.blocks.size()};
        check(kvc_directory_commit_load(directory_, request, external, &table, 1, &asynchronous), "commit_load");
        while (asynchronous && !has_received(name)) {
            step({}, 0); // a real engine computes other requests meanwhile
        }

        uint64_t job = 0;
        std::vector<uint32_t> held(work.blocks.size());
        size_t held_count = held.size(), next_tokens = 0;
        check(kvc_directory_offload(directory_, request, tokens.size(), &table, 1, &job, held.data(), &held_count, &next_tokens),
              "offload");
        size_t computed = tokens.size() - external;
        std::vector<uint32_t> blocks = work.blocks;
        step({std::move(work)}, computed);
        check(kvc_directory_finish(directory_, request), "finish");
        // A block that a job still reads is free when the job has ended.
        for (uint32_t block : blocks) {
            bool is_held = false;
            for (size_t index = 0; index < held_count; ++index) {
                is_held = is_held || held[index] == block;
            }
            if (!is_held) {
                free_.push_back(block);
            }
        }
        release();
        return external;
    }

    // Steps without requests, until every job has ended.
    void settle() {
        for (;;) {
            int32_t pending = 0;
            check(kvc_directory_has_pending_work(directory_, &pending), "has_pending_work");
            if (!pending && !is_busy_) {
                return;
            }
            step({}, 0);
        }
    }

    void stop() {
        Step last;
        last.is_last = true;
        steps_.send(std::move(last));
        results_.receive();
    }

    size_t free_blocks() const { return free_.size(); }

    std::string stats() const {
        size_t bytes = 0;
        check(kvc_directory_stats_json(directory_, nullptr, &bytes), "stats");
        std::string text(bytes + 64, '\0');
        bytes = text.size();
        check(kvc_directory_stats_json(directory_, &text[0], &bytes), "stats");
        text.resize(bytes - 1);
        return text;
    }

  private:
    void step(std::vector<Work> work, size_t scheduled_tokens) {
        Step step;
        step.work = std::move(work);
        size_t bytes = 0;
        check(kvc_directory_take_plan(directory_, scheduled_tokens, now_s(), nullptr, &bytes), "take_plan");
        step.plan.resize(bytes);
        if (bytes > 0) {
            check(kvc_directory_take_plan(directory_, scheduled_tokens, now_s(), step.plan.data(), &bytes), "take_plan");
        }
        steps_.send(std::move(step));

        StepResult result = results_.receive();
        if (result.wrong_bytes > 0) {
            fail("the KV cache has wrong bytes");
        }
        is_busy_ = result.is_busy;
        received_.insert(received_.end(), result.received.begin(), result.received.end());
        if (!result.report.empty()) {
            check(kvc_directory_absorb(directory_, result.report.data(), result.report.size()), "absorb");
        }
        release();
    }

    void release() {
        for (;;) {
            uint32_t released[kBlocks];
            size_t count = kBlocks;
            uint64_t job = 0;
            kvc_status status = kvc_directory_next_ended(directory_, &job, released, &count);
            if (status == KVC_PENDING) {
                return;
            }
            check(status, "next_ended");
            free_.insert(free_.end(), released, released + count);
        }
    }

    bool has_received(const std::string &name) {
        for (const std::string &received : received_) {
            if (received == name) {
                return true;
            }
        }
        return false;
    }

    kvc_directory *directory_ = nullptr;
    Channel<Step> &steps_;
    Channel<StepResult> &results_;
    std::vector<uint32_t> free_;
    std::vector<std::string> received_;
    bool is_busy_ = false;
};

std::vector<std::vector<int32_t>> prompts() {
    // A common beginning, as of a system prompt, and different ends.
    std::vector<std::vector<int32_t>> all;
    for (int32_t prompt = 0; prompt < 4; ++prompt) {
        std::vector<int32_t> tokens;
        for (int32_t token = 0; token < 300; ++token) {
            tokens.push_back(token < 128 ? token : 1000 * (prompt + 1) + token);
        }
        all.push_back(std::move(tokens));
    }
    return all;
}

size_t serve(const char *load_mode, const char *drill) {
    const std::string directory_config = std::string("{\"namespace\": \"engine-example\", \"key_source\": \"tokens\", ") +
                                         "\"groups\": [{\"kind\": \"full\", \"block_tokens\": 16}], \"hash_tokens\": 16, " +
                                         "\"slot_blocks\": 2, \"ranks\": 1, \"load_mode\": \"" + load_mode + "\"}";
    const std::string store_config = std::string("{\"namespace\": \"engine-example\", \"slot_blocks\": 2, ") +
                                     "\"capacity_bytes\": \"8MiB\", \"copy_threads\": 1, \"drill\": \"" + drill + "\"}";
    Channel<Step> steps;
    Channel<StepResult> results;
    Rank rank(store_config);
    std::thread worker([&] {
        for (bool is_last = false; !is_last;) {
            Step step = steps.receive();
            is_last = step.is_last;
            results.send(rank.run(step));
        }
    });

    size_t loaded = 0;
    {
        Scheduler scheduler(directory_config, steps, results);
        const size_t all_blocks = scheduler.free_blocks();
        for (int round = 0; round < 2; ++round) {
            loaded = 0;
            for (size_t prompt = 0; prompt < prompts().size(); ++prompt) {
                std::string name = "request-" + std::to_string(round) + "-" + std::to_string(prompt);
                loaded += scheduler.answer(name, prompts()[prompt]);
            }
            scheduler.settle();
            if (scheduler.free_blocks() != all_blocks) {
                fail("blocks were not given back");
            }
            rank.forget(); // the rank is idle: it waits for a step
        }
        std::printf("%s: %zu of %zu tokens of the second round came from the cache\n", load_mode, loaded,
                    prompts().size() * prompts()[0].size());
        std::printf("%s\n", scheduler.stats().c_str());
        scheduler.stop();
    }
    worker.join();
    return loaded;
}

} // namespace

int main(int argc, char **argv) {
    // A fault to rehearse: with claim_hits_load_nothing this program has to find wrong bytes.
    const char *drill = argc > 1 ? argv[1] : "";
    // Slots of 32 tokens: 288 of each prompt's 300 tokens.
    for (const char *load_mode : {"layerwise", "async"}) {
        if (serve(load_mode, drill) != 4 * 288) {
            fail("the second round was not loaded");
        }
    }
    return 0;
}
