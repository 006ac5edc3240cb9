"""How well copies hide behind compute: steps that load, and steps that offload, layer by layer.

    python -m benches.engine.overlap [--quick] [--only NAME]... [--json FILE] [--threads N]

On a CPU engine copies are so much faster than compute that nothing could be seen. So a drill throttles them until
copying a step's blocks takes as long as computing the step, which is where a pipeline is hardest to keep full: one
after the other the two take twice as long, and a perfect pipeline of layers takes the longer of them and one layer,
the first one to be loaded or the last one to be stored. The throttled copy sleeps, so that it takes no time from the
one that computes.

Compute is what an engine without a connector takes for the same step, in turn with the one that is measured.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benches.engine.measures import DTYPE, L1, in_turn, warm_up
from benches.engine.sides import Side, preload, sides
from benches.rows import Row, row, write
from benches.spread import spread
from tests.e2e.options import EngineOptions, engine_environment
from tests.models import DEMO, MODELS, Model

LAYERS = 16

LAYERED = Model(
    "layered",
    "Llama, 16 layers: a layer is a small part of a step, and a step of some hundred tokens takes tenths of a second",
    {**DEMO.config, "num_hidden_layers": LAYERS, "hidden_size": 512, "intermediate_size": 1408,
     "num_attention_heads": 8},
    DEMO.tensors,
)  # fmt: skip

TOKEN_BYTES = LAYERS * 2 * LAYERED.config["num_key_value_heads"] * LAYERED.config["head_dim"] * 4
"""KV of a token: keys and values of all layers in float32."""

COVERED, COMPUTED = 1024, 256
"""Tokens that a step loads, and tokens that a step computes: whole slots, and together one step."""

LIMIT = 1.15


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few pairs: shows that it runs, not how fast")
    parser.add_argument("--only", action="append", choices=list(MEASURES), help="only this measurement")
    parser.add_argument("--threads", type=int, default=1, help="compute threads of an engine (default 1)")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    os.environ.update(engine_environment(threads=arguments.threads))
    MODELS[LAYERED.name] = LAYERED
    LAYERED.folder()
    preload()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="kvcache-bench-") as logs:
        for name, measure in MEASURES.items():
            if arguments.only and name not in arguments.only:
                continue
            print(f"== {name}", file=sys.stderr, flush=True)
            rows.append(measure(Path(logs), arguments.quick))
    write(rows, arguments.json)
    return 0


def load(logs: Path, quick: bool) -> Row:
    """Prompts of which all but the tail is loaded: the tail of layer `i` is computed while layer `i + 1` is loaded."""
    pairs = pair_count(quick)
    total_bytes = COVERED * TOKEN_BYTES
    computes, steps = [], []

    def tail(side: Side, number: int) -> float:
        # The connector can only load what the engine has forgotten. Both overwrite the engine's KV memory, so that both
        # begin with the same caches of the processor.
        side.ask("forget" if side.name == "connector" else "overwrite")
        run = side.ask("tail_step", 1, COVERED, 10_000 + number, COMPUTED)
        assert run["steps"] == 1, f"{side.name}: the tail took {run['steps']} steps"
        assert run["cached"] == COVERED, f"{side.name}: {run['cached']} of {COVERED} tokens were there"
        return float(run["first_s"])

    with sides(logs, none=OPTIONS) as plain:
        warm_up(plain, lambda side: side.ask("first_token", 1, COVERED, 1))
        rate = total_bytes / statistics.median(tail(plain["none"], 1_000 + number) for number in range(5))
        with sides(logs, connector=throttled(rate)) as other:
            warm_up(other, lambda side: side.ask("first_token", 1, COVERED, 1))
            pair = plain | other
            tail(pair["connector"], 2_000)
            before = pair["connector"].ask("counts")["store"]
            for number in range(pairs):
                seconds = {side.name: tail(side, number) for side in in_turn(pair, number)}
                computes.append(seconds["none"])
                steps.append(seconds["connector"])
            after = pair["connector"].ask("counts")["store"]
    grown = {name: after[name] - before[name] for name in after}
    assert grown["loaded_bytes"] == pairs * total_bytes, f"{grown['loaded_bytes']} bytes were loaded"
    assert grown["offloaded_bytes"] == 0, "an offload has shared the copy engine"
    waited_ms = grown["wait_ns"] / pairs / 1e6
    return result(
        f"step that loads {COVERED:,} tokens and computes {COMPUTED}, copies as slow as compute, {LAYERS} layers",
        steps, computes, total_bytes / rate, f"the engine's thread waited {waited_ms:.0f} ms a step for copies",
    )  # fmt: skip


def offload(logs: Path, quick: bool) -> Row:
    """New prompts: layer `i` is stored while layer `i + 1` is computed. The time ends when the last block is stored."""
    pairs = pair_count(quick)
    total_bytes = COMPUTED * TOKEN_BYTES
    computes, tokens, steps = [], [], []
    with sides(logs, none=OPTIONS) as plain:
        warm_up(plain, lambda side: side.ask("first_token", 1, COMPUTED, 1))
        rate = total_bytes / statistics.median(
            plain["none"].ask("first_token", 1_000 + number, COMPUTED, 1)["first_s"] for number in range(5)
        )
        with sides(logs, connector=throttled(rate)) as other:
            warm_up(other, lambda side: side.ask("first_token", 1, COMPUTED, 1))
            pair = plain | other
            pair["connector"].ask("first_token", 2_000, COMPUTED, 1)
            before = pair["connector"].ask("counts")["store"]
            for number in range(pairs):
                for side in in_turn(pair, number):
                    run = side.ask("first_token", 10_000 + number, COMPUTED, 1)
                    assert run["cached"] == 0, f"{side.name} found {run['cached']} tokens of a new prompt"
                    if side.name == "none":
                        computes.append(run["first_s"])
                    else:
                        # The engine's own step does not wait for the offload; what is pipelined ends with the job.
                        steps.append(run["settled_s"])
                        tokens.append(run["first_s"])
            after = pair["connector"].ask("counts")["store"]
    grown = {name: after[name] - before[name] for name in after}
    assert grown["offloaded_bytes"] == pairs * total_bytes, f"{grown['offloaded_bytes']} bytes were stored"
    assert grown["loaded_bytes"] == 0, "a load has shared the copy engine"
    delay = spread([ours / plain for ours, plain in zip(tokens, computes, strict=True)])
    return result(
        f"step that computes {COMPUTED} tokens until their last block is stored, copies as slow as compute, "
        f"{LAYERS} layers",
        steps, computes, total_bytes / rate, f"the token itself comes after {delay.median:.3f} of compute",
    )  # fmt: skip


OPTIONS = EngineOptions(
    model=LAYERED.name, dtype=DTYPE, kv_bytes=128 << 20, tokens_max=2048, step_tokens_max=2048, requests_max=2
)


def throttled(bytes_per_second: float) -> EngineOptions:
    """An engine whose copies take their time."""
    drill = f"copy_bytes_per_s={bytes_per_second:.0f}"
    return replace(OPTIONS, connector=L1 | {"load_mode": "layerwise", "drill": drill})


def pair_count(quick: bool) -> int:
    """Steps of each side that are compared."""
    return 4 if quick else 30


def result(what: str, steps: list[float], computes: list[float], copy_s: float, remark: str) -> Row:
    """The row of one direction.

    Args:
        what: The step.
        steps: Seconds of each step with copies.
        computes: Seconds of the step beside it, in the engine that copies nothing.
        copy_s: Seconds that the copies of a step take at the throttled rate.
        remark: What explains the result.
    """
    ratio = spread([step / bound_s(copy_s, compute) for step, compute in zip(steps, computes, strict=True)])
    compute, step = statistics.median(computes), statistics.median(steps)
    return row(
        what, f"<= {LIMIT} x (max(copy, compute) + one layer)", f"{ratio.median:.3f}",
        f"95 % {ratio.low:.3f}..{ratio.high:.3f}, {ratio.samples} pairs; step {step * 1e3:.0f} ms, compute "
        f"{compute * 1e3:.0f} ms, copy {copy_s * 1e3:.0f} ms (one after the other: "
        f"{(compute + copy_s) / bound_s(copy_s, compute):.2f}); {remark}",
        ratio.median <= LIMIT, ratio=ratio.json(), step_s=steps, compute_s=computes, copy_s=copy_s,
    )  # fmt: skip


def bound_s(copy_s: float, compute_s: float) -> float:
    """The time of a perfect pipeline: the longer of the two, and one layer of it to fill or to empty the pipe."""
    return max(copy_s, compute_s) * (1 + 1 / LAYERS)


MEASURES: dict[str, Callable[[Path, bool], Row]] = {"load": load, "offload": offload}


if __name__ == "__main__":
    sys.exit(main())
