/* The smallest use of libkvcache: name the blocks of a prompt, store them, find them again, read them back.
 *
 *     cc remember.c $(pkg-config --cflags --libs kvcache) -o remember && ./remember
 */

#include <kvcache.h>
#include <stdio.h>
#include <stdlib.h>

enum { TOKENS = 1000, BLOCK_TOKENS = 16, BLOCK_BYTES = 4096, BLOCKS = TOKENS / BLOCK_TOKENS };

/* In an engine a failure of the cache is a miss: it computes what it would have loaded. An example may stop. */
static void check(kvc_status status) {
    if (status != KVC_OK) {
        fprintf(stderr, "%s\n", kvc_last_error());
        exit(1);
    }
}

int main(void) {
    kvc_cache *cache = NULL;
    check(kvc_open("{\"block_bytes\": 4096, \"capacity_bytes\": \"4MiB\"}", &cache));
    printf("libkvcache %s\n", kvc_version());

    /* A block's key covers every token up to the block's end; 1000 tokens are 62 whole blocks and a tail. */
    int32_t *tokens = malloc(TOKENS * sizeof *tokens);
    uint8_t *keys = malloc(BLOCKS * 16);
    uint8_t *computed = malloc((size_t)BLOCKS * BLOCK_BYTES);
    uint8_t *loaded = malloc((size_t)BLOCKS * BLOCK_BYTES);
    if (tokens == NULL || keys == NULL || computed == NULL || loaded == NULL) {
        fprintf(stderr, "out of memory\n");
        return 1;
    }
    for (int token = 0; token < TOKENS; token++) {
        tokens[token] = token * 7;
    }
    size_t blocks = 0;
    check(kvc_hash_tokens(cache, tokens, TOKENS, BLOCK_TOKENS, NULL, 0, keys, &blocks));

    size_t leading = 0;
    check(kvc_match(cache, keys, blocks, &leading));
    printf("%zu blocks, %zu of them are here\n", blocks, leading);

    /* An engine would copy its KV cache here. */
    const size_t bytes = blocks * BLOCK_BYTES;
    for (size_t byte = 0; byte < bytes; byte++) {
        computed[byte] = (uint8_t)(byte * 31 + byte / BLOCK_BYTES);
    }
    size_t stored = 0;
    check(kvc_put(cache, keys, blocks, computed, bytes, &stored));
    printf("%zu leading blocks are stored\n", stored);

    size_t count = 0;
    check(kvc_get(cache, keys, blocks, loaded, bytes, &count));
    printf("%zu blocks are loaded, their bytes are %s\n", count,
           count == blocks && memcmp(loaded, computed, bytes) == 0 ? "equal" : "DIFFERENT");
    if (count != blocks || memcmp(loaded, computed, bytes) != 0) {
        return 1;
    }

    /* Without its 11th block the prefix ends after ten. */
    size_t deleted = 0;
    check(kvc_delete(cache, keys + 10 * 16, 1, &deleted));
    check(kvc_match(cache, keys, blocks, &leading));
    printf("%zu block is deleted, %zu leading blocks are left\n", deleted, leading);

    /* The first call says how long the text is, its NUL included. */
    size_t text_bytes = 0;
    check(kvc_stats_json(cache, NULL, &text_bytes));
    text_bytes += 64; /* counts may grow meanwhile */
    char *text = malloc(text_bytes);
    if (text == NULL) {
        fprintf(stderr, "out of memory\n");
        return 1;
    }
    check(kvc_stats_json(cache, text, &text_bytes));
    printf("%s\n", text);

    kvc_close(cache);
    free(text);
    free(loaded);
    free(computed);
    free(keys);
    free(tokens);
    return 0;
}
