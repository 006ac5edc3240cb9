"""Calls every function of the library with nothing, with closed handles and with strangers, from several threads.

    python -m tests.capi.every_call LIBRARY HEADER

The functions are those of the header, so that none is forgotten. What goes wrong is a signal: run it alone.
"""

import ctypes
import re
import sys
import threading
from pathlib import Path

ARGUMENT = {"double": ctypes.c_double, "int32_t": ctypes.c_int32, "uint32_t": ctypes.c_uint32}
RETURNED = {"void": None, "const char *": ctypes.c_void_p}
HANDLES = ("kvc_cache", "kvc_directory", "kvc_store", "kvc_lease", "kvc_fill")
# Of these nothing is an answer, or all is well with nothing.
WITHOUT_STATUS = ("void", "const char *", "uint32_t")
FINE_WITH_NOTHING = {"kvc_set_log", "kvc_has_feature"}


def functions(header: str) -> dict[str, tuple[str, list[str]]]:
    """Every function of a header: what it returns, and its parameters as they stand there."""
    header = re.sub(r"/\*.*?\*/|//[^\n]*|^#[^\n]*", "", header, flags=re.DOTALL | re.MULTILINE)
    found = {}
    for returned, name, parameters in re.findall(r"^([\w ]+?[ *]+)(kvc_\w+)\(([^)]*)\);", header, re.MULTILINE):
        listed = [" ".join(one.split()) for one in parameters.split(",")]
        found[name] = (" ".join(returned.split()), [one for one in listed if one != "void"])
    return found


def argument_types(parameters: list[str]) -> list[type]:
    types: list[type] = []
    for parameter in parameters:
        kind = parameter.split()[0]
        is_address = "*" in parameter or kind == "kvc_log_callback"
        types.append(ctypes.c_void_p if is_address else ARGUMENT.get(kind, ctypes.c_size_t))
    return types


def check(library: ctypes.CDLL, found: dict[str, tuple[str, list[str]]], closed: dict[str, int], stranger: int) -> None:
    last_error = library["kvc_last_error"]  # an object of its own, unlike an attribute
    last_error.restype = ctypes.c_char_p
    for name, (returned, parameters) in found.items():
        call = getattr(library, name)
        call.argtypes = argument_types(parameters)
        call.restype = RETURNED.get(returned, ctypes.c_int32)
        first_parameter = parameters[0] if parameters else ""
        handle = next((kind for kind in HANDLES if re.match(rf"(const )?{kind} \*\w", first_parameter)), None)
        firsts = [0] if handle is None else [0, closed.get(handle, stranger), stranger]
        for first in firsts:
            values = [kind() if kind is not ctypes.c_void_p else None for kind in call.argtypes]
            if handle is not None:
                values[0] = first
            status = call(*values)
            if returned in WITHOUT_STATUS or name in FINE_WITH_NOTHING:
                continue
            text = last_error().decode()
            if status == 0 or status == 14:
                raise AssertionError(f"{name}({values}) is {status}: {text}")
            # The opening functions answer for each other, so that a name may be the beginning of another.
            if not text.split(":")[0].startswith("kvc_") or len(text) < 20:
                raise AssertionError(f"{name}({values}) left no words: {text!r}")


def closed_handles(library: ctypes.CDLL) -> dict[str, int]:
    """A handle of each kind that can be had without an engine, closed again."""
    opened = ctypes.c_void_p()
    assert library.kvc_open(b'{"block_bytes": 64, "capacity_bytes": 640}', ctypes.byref(opened)) == 0
    keys, places, count = bytes(16), (ctypes.c_void_p * 1)(), ctypes.c_size_t()
    lease, fill = ctypes.c_void_p(), ctypes.c_void_p()
    one = ctypes.c_size_t(1)
    assert library.kvc_lease_blocks(opened, keys, one, places, ctypes.byref(count), ctypes.byref(lease)) == 0
    assert library.kvc_reserve(opened, keys, one, places, ctypes.byref(count), ctypes.byref(fill)) == 0
    library.kvc_lease_release(lease)
    library.kvc_abandon(fill)
    library.kvc_close(opened)
    values = {"kvc_cache": opened.value, "kvc_lease": lease.value, "kvc_fill": fill.value}
    return {name: value for name, value in values.items() if value is not None}


def main(library_path: str, header_path: str) -> None:
    found = functions(Path(header_path).read_text())
    assert len(found) > 30, f"only {len(found)} functions were found"
    library = ctypes.CDLL(library_path)
    closed = closed_handles(library)
    assert len(closed) == 3
    memory = ctypes.create_string_buffer(64)
    failures: list[str] = []

    def run() -> None:
        # Its own object for each thread: what a function takes and gives is set there.
        own = ctypes.CDLL(library_path)
        try:
            for _ in range(20):
                check(own, found, closed, ctypes.addressof(memory))
        except Exception as error:
            failures.append(repr(error))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]
    print(f"{len(found)} functions")


if __name__ == "__main__":
    main(*sys.argv[1:])
