/* Reads blocks that an engine has stored on a ring of cache servers, or in the shared memory of the server on this host.
 *
 *     cc ask_ring.c $(pkg-config --cflags --libs kvcache) -o ask_ring
 *     ./ask_ring REMOTE NAMESPACE_ID SHARD_ID BLOCK_BYTES BLOCK_TOKENS EXTRA_HEX TOKENS_FILE [OUTPUT_FILE]
 *
 * NAMESPACE_ID and SHARD_ID are what the engine's connector logs when it starts, BLOCK_BYTES and BLOCK_TOKENS the bytes and tokens of
 * one of its slots: docs/c-api.md says where to find them. The engine has to name blocks by their tokens ("key_source": "tokens").
 * EXTRA_HEX is what separates keys besides the tokens, in hexadecimal digits; "" for none. TOKENS_FILE holds the prompt's token ids in
 * decimal. The bytes of the blocks that are there go to OUTPUT_FILE; without one, a checksum is printed.
 */

#include <errno.h>
#include <kvcache.h>
#include <stdio.h>
#include <stdlib.h>

enum { TOKENS_MAX = 1 << 20, EXTRA_MAX = 4096 };

static void check(kvc_status status) {
    if (status != KVC_OK) {
        fprintf(stderr, "%s\n", kvc_last_error());
        exit(1);
    }
}

static void stop(const char *why, const char *what) {
    fprintf(stderr, "%s: %s\n", why, what);
    exit(2);
}

static void *memory(size_t bytes) {
    void *made = malloc(bytes > 0 ? bytes : 1);
    if (made == NULL) {
        stop("out of memory", "use a smaller prompt");
    }
    return made;
}

static size_t number(const char *text) {
    char *end = NULL;
    errno = 0;
    const unsigned long long value = strtoull(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || value == 0 || value > SIZE_MAX / 2) {
        stop("not a number of bytes or tokens", text);
    }
    return (size_t)value;
}

/* What is put between quotes of JSON must not end them. */
static const char *plain(const char *text) {
    for (const char *c = text; *c != '\0'; c++) {
        if (*c == '"' || *c == '\\' || (unsigned char)*c < ' ') {
            stop("a character that has no place here", text);
        }
    }
    return text;
}

static size_t bytes_of_hex(const char *digits, uint8_t *bytes) {
    const size_t count = strlen(digits);
    if (count % 2 != 0 || count / 2 > EXTRA_MAX) {
        stop("not pairs of hexadecimal digits", digits);
    }
    for (size_t byte = 0; byte < count / 2; byte++) {
        unsigned value = 0;
        if (sscanf(digits + 2 * byte, "%2x", &value) != 1) {
            stop("not pairs of hexadecimal digits", digits);
        }
        bytes[byte] = (uint8_t)value;
    }
    return count / 2;
}

static size_t read_tokens(const char *path, int32_t *tokens) {
    FILE *file = fopen(path, "r");
    if (file == NULL) {
        stop("cannot open", path);
    }
    size_t count = 0;
    long token = 0;
    while (count < TOKENS_MAX && fscanf(file, "%ld", &token) == 1) {
        tokens[count++] = (int32_t)token;
    }
    fclose(file);
    return count;
}

/* FNV-1a, enough to see whether two outputs are the same. */
static uint64_t checksum(const uint8_t *bytes, size_t count) {
    uint64_t sum = 0xcbf29ce484222325;
    for (size_t byte = 0; byte < count; byte++) {
        sum = (sum ^ bytes[byte]) * 0x100000001b3;
    }
    return sum;
}

int main(int argc, char **argv) {
    if (argc != 8 && argc != 9) {
        fprintf(stderr,
                "usage: %s REMOTE NAMESPACE_ID SHARD_ID BLOCK_BYTES BLOCK_TOKENS EXTRA_HEX TOKENS_FILE [OUTPUT_FILE]\n",
                argv[0]);
        return 2;
    }
    const size_t block_bytes = number(argv[4]);
    const size_t block_tokens = number(argv[5]);
    uint8_t extra[EXTRA_MAX];
    const size_t extra_bytes = bytes_of_hex(argv[6], extra);
    int32_t *tokens = memory(TOKENS_MAX * sizeof *tokens);
    const size_t count = read_tokens(argv[7], tokens);
    size_t blocks = count / block_tokens;

    /* Room for the whole prompt in L1, through which everything goes. "evicted" keeps us from bringing anything to the servers: we
     * only read, and nothing is ever evicted. */
    char config[4096];
    const int length = snprintf(config, sizeof config,
                                "{\"remote\": \"%s\", \"namespace_id\": \"%s\", \"shard_id\": \"%s\", \"hash\": \"blake3\","
                                " \"block_bytes\": %zu, \"capacity_bytes\": %zu, \"ingestion\": \"evicted\"}",
                                plain(argv[1]), plain(argv[2]), plain(argv[3]), block_bytes,
                                (blocks > 0 ? blocks : 1) * block_bytes);
    if (length < 0 || (size_t)length >= sizeof config) {
        stop("too long", argv[1]);
    }
    kvc_cache *cache = NULL;
    check(kvc_open(config, &cache));

    uint8_t *keys = memory(blocks * 16);
    uint8_t *out = memory(blocks * block_bytes);
    check(kvc_hash_tokens(cache, tokens, count, block_tokens, extra, extra_bytes, keys, &blocks));
    /* Block by block, until one is missing. One call for all is quicker, but with this an engine could go on with the first. */
    size_t loaded = 0;
    for (size_t here = 1; loaded < blocks && here == 1; loaded += here) {
        here = 0;
        check(kvc_get(cache, keys + loaded * 16, 1, out + loaded * block_bytes, block_bytes, &here));
    }
    printf("%zu of %zu blocks\n", loaded, blocks);
    if (loaded < blocks) {
        /* Blocks that nobody stored are no problem; servers that cannot be reached are. */
        char problems[4096];
        size_t problem_bytes = sizeof problems;
        if (kvc_problems(cache, problems, &problem_bytes) == KVC_OK && problems[0] != '\0') {
            fprintf(stderr, "%s\n", problems);
        }
    }
    if (argc == 9) {
        FILE *file = fopen(argv[8], "wb");
        if (file == NULL || fwrite(out, 1, loaded * block_bytes, file) != loaded * block_bytes || fclose(file) != 0) {
            stop("cannot write", argv[8]);
        }
    } else {
        printf("checksum %016llx\n", (unsigned long long)checksum(out, loaded * block_bytes));
    }
    kvc_close(cache);
    free(out);
    free(keys);
    free(tokens);
    return loaded > 0 ? 0 : 3;
}
