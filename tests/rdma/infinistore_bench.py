"""Our RDMA client and server against InfiniStore's over soft RoCE: infinistore_bench.py PROGRAM STOCK_PORT OUR_PORT.

Every client is a process that stays connected and moves values when it is told to, so that runs can be interleaved. A
run moves the same number of values in the same number of requests for all: 61 requests of one value of 4 KiB in flight
(requests a second), or 4 requests of 32 values of 64 KiB (bytes a second), the next when all have ended.

The ring's client keeps a checksum of every value, which the stock client has not, and batches. Prints a table: ratios
of medians, and the median and range of the ratios of runs of the same round. Then the results in one line of JSON that
begins with ``results-json``.
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

ROUNDS = int(os.environ.get("RDMA_BENCH_ROUNDS", "7"))
SHAPES = {
    "small": {"bytes": 4096, "keys": 1, "in_flight": 61, "repeats": 10},
    "large": {"bytes": 65536, "keys": 32, "in_flight": 4, "repeats": 2},
}


def serve_stock_client(port: int) -> None:
    """Be the stock client, as a process of its own."""
    import infinistore
    import numpy as np

    config = infinistore.ClientConfig(
        connection_type=infinistore.TYPE_RDMA,
        host_addr="127.0.0.1",
        service_port=port,
        dev_name="rxe0",
        link_type="Ethernet",
        log_level="error",
    )
    connection = infinistore.InfinityConnection(config)
    connection.connect()
    large = SHAPES["large"]
    memory: Any = np.ones(large["bytes"] * large["keys"] * large["in_flight"], dtype=np.uint8)
    base = memory.ctypes.data
    connection.register_mr(base, memory.nbytes)

    async def run(op: str, name: str, repeats: int) -> None:
        shape = SHAPES[name]
        # Puts go to other names than what is loaded.
        prefix = f"{op if repeats else 'get'}-{name}"
        call = connection.rdma_read_cache_async if op == "get" else connection.rdma_write_cache_async
        keys, size = shape["keys"], shape["bytes"]
        # Names as long as ours.
        requests = [
            [(f"{prefix}-{index:060d}", index * size) for index in range(first, first + keys)]
            for first in range(0, keys * shape["in_flight"], keys)
        ]
        for _ in range(repeats or 1):
            await asyncio.gather(*(call(blocks, size, base) for blocks in requests))

    loop = asyncio.new_event_loop()
    for name in SHAPES:
        loop.run_until_complete(run("put", name, 0))
    print("bench ready", flush=True)
    for line in sys.stdin:
        op, name, repeats = line.split()
        started = time.monotonic()
        loop.run_until_complete(run(op, name, int(repeats)))
        print(f"bench {time.monotonic() - started}", flush=True)
    os._exit(0)


class Client:
    """A client process."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        if self.answer() != "ready":
            raise RuntimeError(f"{name} is not ready")

    def answer(self) -> str:
        """Return its next answer; the stock client says other things in between."""
        for line in self.stdout:
            word, _, answer = line.strip().partition(" ")
            if word == "bench":
                return answer
        raise RuntimeError(f"{self.name} has ended")

    def seconds(self, op: str, shape: str) -> float:
        """Let it do one run; how long that took."""
        self.stdin.write(f"{op} {shape} {SHAPES[shape]['repeats']}\n")
        self.stdin.flush()
        return float(self.answer())


RATIOS = [
    ("our client / stock client, on the stock server", "our client, stock server", "stock client, stock server"),
    ("our server / stock server, with the stock client", "stock client, our server", "stock client, stock server"),
    (
        "our ring with checksums / stock client, on the stock server",
        "our ring, stock server",
        "stock client, stock server",
    ),
    ("our ring on our server / all stock", "our ring, our server", "stock client, stock server"),
]


def unit_of(who: str, shape: str, bytes_unit: str) -> str:
    """Name the unit of a rate. The ring's client puts values that are submitted together in one request."""
    if shape == "large":
        return bytes_unit
    return "values/s in batches" if "ring" in who else "requests/s"


def rate(shape: str, seconds: float) -> float:
    """Requests or bytes a second."""
    of = SHAPES[shape]
    requests = of["in_flight"] * of["repeats"]
    return requests / seconds if shape == "small" else requests * of["keys"] * of["bytes"] / seconds


def main(check: str, stock_port: int, our_port: int) -> None:
    """Run everything, interleaved, and print what came of it."""
    stock = [sys.executable, __file__, "--stock-client"]
    clients = [
        Client("stock client, stock server", [*stock, str(stock_port)]),
        Client("our client, stock server", [check, "bench", f"127.0.0.1:{stock_port}", "plain"]),
        Client("our ring, stock server", [check, "bench", f"127.0.0.1:{stock_port}", "ring"]),
        Client("stock client, our server", [*stock, str(our_port)]),
        Client("our ring, our server", [check, "bench", f"127.0.0.1:{our_port}", "ring"]),
    ]
    rates: dict[tuple[str, str, str], list[float]] = {}
    for number in range(-1, ROUNDS):
        # Who begins changes from round to round; the first round is not counted.
        for client in clients[number % len(clients) :] + clients[: number % len(clients)]:
            for op in ("put", "get"):
                for shape in SHAPES:
                    found = rate(shape, client.seconds(op, shape))
                    if number >= 0:
                        rates.setdefault((client.name, op, shape), []).append(found)
    results: dict[str, Any] = {"rounds": ROUNDS, "shapes": SHAPES, "rates": [], "ratios": []}
    print(f"{'':62} {'median':>12} {'lowest':>12} {'highest':>12}")
    for (name, op, shape), runs in rates.items():
        unit = unit_of(name, shape, "MB/s")
        shown = [
            value if shape == "small" else value / 1e6 for value in (statistics.median(runs), min(runs), max(runs))
        ]
        print(f"{name + ': ' + op + ', ' + unit:62} {shown[0]:12.1f} {shown[1]:12.1f} {shown[2]:12.1f}")
        results["rates"].append({"who": name, "op": op, "unit": unit, "values": runs})
    for title, ours, theirs in RATIOS:
        for op in ("put", "get"):
            for shape in SHAPES:
                pairs = zip(rates[ours, op, shape], rates[theirs, op, shape], strict=True)
                each = sorted(mine / other for mine, other in pairs)
                middle = statistics.median(rates[ours, op, shape]) / statistics.median(rates[theirs, op, shape])
                unit, paired = unit_of(ours, shape, "bytes/s"), statistics.median(each)
                by_round = f"by round {paired:.2f}, {each[0]:.2f} to {each[-1]:.2f}"
                print(f"{title + ': ' + op + ', ' + unit:80} {middle:6.2f} ({by_round})")
                results["ratios"].append(
                    {"what": title, "op": op, "unit": unit, "ratio_of_medians": middle, "by_round": each}
                )
    print("results-json " + json.dumps(results), flush=True)
    for client in clients:
        client.process.kill()


if __name__ == "__main__":
    if sys.argv[1] == "--stock-client":
        serve_stock_client(int(sys.argv[2]))
    else:
        main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
