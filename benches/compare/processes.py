"""What processes cost: processor time and memory, of processes that may run anything."""

import ctypes
import os
import time
from collections.abc import Iterable
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)


def cpu_seconds(process_ids: Iterable[int]) -> float:
    """Processor time since they started, of all threads, those that have ended too; to the nanosecond.

    Raises:
        ProcessLookupError: One of them has ended.
    """
    return sum(time.clock_gettime(_cpu_clock(process_id)) for process_id in process_ids)


def memory_bytes(process_ids: Iterable[int]) -> int:
    """Anonymous and shared memory of the processes together.

    What they share counts once, as the kernel splits a page over those that map it. Files, such as the programs
    themselves, are left out: others that run have them too, and their split would change with who runs.

    Raises:
        ProcessLookupError: One of them has ended.
    """
    return sum(_resident_bytes(process_id) for process_id in process_ids)


def _cpu_clock(process_id: int) -> int:
    clock = ctypes.c_int()
    error = _LIBC.clock_getcpuclockid(ctypes.c_int(process_id), ctypes.byref(clock))
    if error:
        raise ProcessLookupError(error, f"process {process_id}: {os.strerror(error)}")
    return clock.value


def _resident_bytes(process_id: int) -> int:
    try:
        lines = Path(f"/proc/{process_id}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ProcessLookupError(f"process {process_id} has ended") from error
    kib = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines[1:])}
    return (kib["Pss_Anon"] + kib["Pss_Shmem"]) << 10
