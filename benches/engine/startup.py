"""Start-up: how much later an engine is ready with a slab than without a connector.

    python -m benches.engine.startup [--slab SIZE] [--runs N] [--fill] [--threads N]

Engines start in turn, each in a process forked from this one, which has loaded vLLM: what is timed is the engine's own
start, from its options to ready, not the imports. Three kinds take turns: none (no connector), new (a slab file that is
made), and warm (the slab file that the one before left, its storage taken; with --fill every slot of it in use).
"""

import argparse
import os
import statistics
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.e2e.crashes import SlabFile, shared_folder
from tests.e2e.options import EngineOptions, engine_environment
from tests.e2e.scenario import Scenarios
from tests.models import TINY, prompt

LIMIT_S = 1.0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--slab", default="8GiB", help="capacity of the slab (default 8GiB)")
    parser.add_argument("--runs", type=int, default=5, help="starts of each kind (default 5)")
    parser.add_argument("--fill", action="store_true", help="mark every slot of the warm slab as in use")
    parser.add_argument("--threads", type=int, default=1, help="compute threads of an engine (default 1)")
    arguments = parser.parse_args()
    os.environ.update(engine_environment(threads=arguments.threads))
    TINY.folder()
    times: dict[str, list[float]] = {"none": [], "new": [], "warm": []}
    found = first_s = 0.0
    with tempfile.TemporaryDirectory(prefix="kvcache-bench-") as logs:
        scenarios = Scenarios(Path(logs))
        for turn in range(arguments.runs):
            with shared_folder() as folder:
                slab = EngineOptions(connector={"capacity": arguments.slab, "slab_dir": str(folder)})
                kinds = [("none", slab.without_connector()), ("new", slab)]
                for kind, options in kinds if turn % 2 else reversed(kinds):
                    times[kind].append(scenarios.run(started, options, kind == "new")["ready_s"])
                if arguments.fill:
                    fill(SlabFile.all(folder)[0])
                warm = scenarios.run(started, slab, False)
                times["warm"].append(warm["ready_s"])
                found, first_s = warm["found"], warm["first_s"]
            print({kind: [round(s, 2) for s in values] for kind, values in times.items()}, file=sys.stderr, flush=True)
    middle = {kind: statistics.median(values) for kind, values in times.items()}
    for kind, values in times.items():
        # Of the turns, not of the medians: what slows the machine down for a minute slows all of a turn.
        later = statistics.median(here - none for here, none in zip(values, times["none"], strict=True))
        spread = f"median of {len(values)}, {min(values):.2f} to {max(values):.2f}"
        against = f", {later:+.2f} s: {'within' if later <= LIMIT_S else 'OVER'} {LIMIT_S:.0f} s"
        print(f"{kind:<5} ready after {middle[kind]:5.2f} s ({spread}){'' if kind == 'none' else against}")
    print(f"warm: {found:.0f} blocks found, first token of a 300-token prompt {first_s:.2f} s after ready")
    return 0


def started(options: EngineOptions, wait: bool) -> dict[str, Any]:
    """Starts an engine and asks it one prompt; with `wait`, stays until the slab's storage is taken."""
    from tests.e2e.engine import Engine

    began = time.monotonic()
    with Engine(options) as engine:
        ready_s = time.monotonic() - began
        began = time.monotonic()
        engine.generate([prompt(time.monotonic_ns() % 1000, 300)], tokens=1)
        first_s = time.monotonic() - began
        found = 0
        if options.connector is not None:
            from tests.e2e.inside import planner_stats

            until = time.monotonic() + 60
            while wait and planner_stats(engine)["slots_unusable"] and time.monotonic() < until:
                engine.generate([[1, 2, 3]], tokens=1)
                time.sleep(0.2)
            found = int(planner_stats(engine)["adopted_blocks"])
        return {"ready_s": ready_s, "first_s": first_s, "found": found}


def fill(slab: SlabFile) -> None:
    """Copies a stored slot's record to every slot under other keys, as if the slab had been in use for long.

    The keys are of no prompt and their checksums are made as docs/format.md says.
    """
    ready = slab.slots(SlabFile.READY)
    with slab.path.open("r+b") as file:
        file.seek(slab.table_offset + ready[0] * SlabFile.RECORD_BYTES)
        record = bytearray(file.read(SlabFile.RECORD_BYTES))
        assert record[96:104] == record_checksum(record, ready[0]), "this is not the format that is filled here"
        file.seek(slab.table_offset)
        table = bytearray()
        for slot in range(slab.slot_count):
            struct.pack_into("<QQ", record, 8, slot + 1, 0x5EED)
            struct.pack_into("<Q", record, 8 + 8 * 8, slot + 1)
            record[96:104] = record_checksum(record, slot)
            table += record
        file.write(table)
        # The header's highest fill id.
        file.seek(136)
        file.write(struct.pack("<Q", slab.slot_count + 1))


SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221"
    "b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
)
WORD = (1 << 64) - 1


def record_checksum(record: bytes | bytearray, slot: int) -> bytes:
    """XXH3-64 of a record's 88 bytes of identity, its info and its slot; written out for this one length."""
    (info,) = struct.unpack_from("<I", record, 4)
    words = [*struct.unpack_from("<11Q", record, 8), info << 32 | slot]
    secret = struct.unpack("<12Q", SECRET)
    total = 96 * 0x9E3779B185EBCA87
    # Pairs of words from both ends inwards, each with the next piece of the secret.
    for part, at in enumerate((0, 10, 2, 8, 4, 6)):
        product = (words[at] ^ secret[2 * part]) * (words[at + 1] ^ secret[2 * part + 1])
        total += (product & WORD) ^ (product >> 64)
    total &= WORD
    total ^= total >> 37
    total = total * 0x165667919E3779F9 & WORD
    return struct.pack("<Q", total ^ total >> 32)


if __name__ == "__main__":
    sys.exit(main())
