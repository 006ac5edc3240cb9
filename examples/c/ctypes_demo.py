"""libkvcache from a language without bindings for it: Python's ctypes, nothing else.

Usage: python ctypes_demo.py [LIBRARY]

LIBRARY is the path of libkvcache.so.0; by default it is looked for where the system's libraries are.
"""

import ctypes
import json
import sys

BLOCK_TOKENS = 16
BLOCK_BYTES = 4096
KVC_ABI_VERSION = 1  # of the header that this file follows


class Library:
    """The functions that are used here. A function of C is called as it stands in the header."""

    def __init__(self, path: str) -> None:
        self.functions = ctypes.CDLL(path)
        self.functions.kvc_last_error.restype = ctypes.c_char_p
        self.functions.kvc_version.restype = ctypes.c_char_p
        self.functions.kvc_close.restype = None

    def call(self, name: str, *arguments: object) -> None:
        """Calls a function that returns a status; ctypes passes integers as `int` unless they say what they are."""
        status = getattr(self.functions, name)(*arguments)
        if status != 0:
            raise RuntimeError(self.functions.kvc_last_error().decode())


def main() -> None:
    library = Library(sys.argv[1] if len(sys.argv) > 1 else "libkvcache.so.0")
    print("libkvcache", library.functions.kvc_version().decode())
    config = json.dumps({"block_bytes": BLOCK_BYTES, "capacity_bytes": "1MiB"}).encode()
    cache = ctypes.c_void_p()
    library.call("kvc_open_for_abi", ctypes.c_uint32(KVC_ABI_VERSION), config, ctypes.byref(cache))

    tokens = (ctypes.c_int32 * 100)(*range(100))
    blocks = ctypes.c_size_t()
    keys = (ctypes.c_uint8 * (len(tokens) // BLOCK_TOKENS * 16))()
    library.call(
        "kvc_hash_tokens", cache, tokens, ctypes.c_size_t(len(tokens)), ctypes.c_size_t(BLOCK_TOKENS), None,
        ctypes.c_size_t(0), keys, ctypes.byref(blocks),
    )  # fmt: skip
    print(f"{blocks.value} keys, the first is {bytes(keys[:16]).hex()}")

    data = bytes(byte % 251 for byte in range(blocks.value * BLOCK_BYTES))
    count = ctypes.c_size_t()
    library.call("kvc_put", cache, keys, blocks, data, ctypes.c_size_t(len(data)), ctypes.byref(count))
    print(f"{count.value} blocks are stored")

    out = ctypes.create_string_buffer(len(data))
    library.call("kvc_get", cache, keys, blocks, out, ctypes.c_size_t(len(data)), ctypes.byref(count))
    print(f"{count.value} blocks are loaded, bytes equal: {out.raw == data}")

    try:
        library.call("kvc_get", cache, keys, blocks, out, ctypes.c_size_t(1), ctypes.byref(count))
    except RuntimeError as error:
        print(f"a wrong size is an error: {error}")
    library.functions.kvc_close(cache)


if __name__ == "__main__":
    main()
