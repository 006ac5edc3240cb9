"""The connector inside the engine: what it costs when there is nothing to gain, and what it gains.

    python -m benches.engine.measures [--quick] [--only NAME]... [--json FILE] [--threads N]

Every comparison is of two engines that take turns (see `benches.engine.sides`); which one goes first alternates.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benches.engine.sides import Side, preload, sides
from benches.rows import Row, row, write
from benches.spread import spread
from tests.e2e.options import EngineOptions, engine_environment
from tests.models import DEMO, MODELS, TINY, Model

L1 = {"capacity": "1GiB"}

DTYPE = "float32"
"""Many processors multiply it several times faster than bfloat16: the less is computed, the more a connector shows."""

DEEP = Model(
    "deep",
    "Llama, 32 layers as small as they can be: steps in which the layers' hooks weigh most",
    {**TINY.config, "num_hidden_layers": 32, "hidden_size": 128, "intermediate_size": 128, "num_attention_heads": 2},
    TINY.tensors,
)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few pairs: shows that it runs, not how fast")
    parser.add_argument("--only", action="append", choices=list(MEASURES), help="only this measurement")
    parser.add_argument("--threads", type=int, default=1, help="compute threads of an engine (default 1)")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    # Torch reads it when it is loaded, which nothing above has done.
    os.environ.update(engine_environment(threads=arguments.threads))
    MODELS[DEEP.name] = DEEP
    for model in (TINY, DEEP, DEMO):
        model.folder()
    preload()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="kvcache-bench-") as logs:
        for name, measure in MEASURES.items():
            if arguments.only and name not in arguments.only:
                continue
            print(f"== {name}", file=sys.stderr, flush=True)
            rows += measure(Path(logs), arguments.quick)
    write(rows, arguments.json)
    return 0


def idle_step(logs: Path, quick: bool) -> list[Row]:
    """Decode steps of a 32-layer model in which nothing is loaded or stored."""
    rounds = 6 if quick else 40
    options = EngineOptions(model=DEEP.name, dtype=DTYPE, requests_max=2, tokens_max=512)
    idle = replace(
        options, connector={}, connector_name="IdleConnector", connector_module="benches.engine.idle_connector"
    )
    with sides(logs, none=options, idle=idle, connector=replace(options, connector=L1)) as pair:
        warm_up(pair, lambda side: side.ask("decode_steps", 0, 20, 60))
        # By what is compared: the connector with none, the same in processor time, and with a connector that is empty.
        differences: dict[str, list[float]] = {"clock": [], "processor": [], "idle": []}
        nones: list[float] = []
        for number in range(rounds):
            runs = {side.name: side.ask("decode_steps", 1 + number, 20, 90) for side in in_turn(pair, number)}
            clock = {name: statistics.median(run["steps_s"]) * 1e6 for name, run in runs.items()}
            processor = {name: statistics.median(run["busy_s"]) * 1e6 for name, run in runs.items()}
            differences["clock"].append(clock["connector"] - clock["none"])
            differences["processor"].append(processor["connector"] - processor["none"])
            differences["idle"].append(processor["idle"] - processor["none"])
            nones.append(clock["none"] / 1e3)
        side = pair["connector"]
        side.ask("time_hooks")
        calls: dict[str, list[float]] = {}
        per_step = []
        for number in range(max(3, rounds // 4)):
            count = len(side.ask("decode_steps", 10_000 + number, 20, 90)["steps_s"]) + 3
            times = side.ask("hook_times")
            per_step.append(sum(total for total, _ in times.values()) / count / 1e3)
            for name, (total, _) in times.items():
                calls.setdefault(name, []).append(round(total / count / 1e3, 2))
    added, in_processor, empty = (spread(differences[name]) for name in ("clock", "processor", "idle"))
    hooks = spread(per_step)
    by_hook = {name: statistics.median(values) for name, values in calls.items()}
    step = f", {rounds} rounds; a step takes {statistics.median(nones):.2f} ms"
    what = "step time added by a connector with nothing to do, 32 layers"
    return [
        row(what, "<= 50 us", f"{added.median:.0f} us", f"95 % {added.low:.0f}..{added.high:.0f} us{step}",
            added.median <= 50, difference_us=added.json(), step_ms=statistics.median(nones)),
        row("the same in processor time of the engine's thread", "", f"{in_processor.median:.0f} us",
            f"95 % {in_processor.low:.0f}..{in_processor.high:.0f} us", None, difference_us=in_processor.json()),
        row("what vLLM itself adds for any connector: an empty one, in processor time", "", f"{empty.median:.0f} us",
            f"95 % {empty.low:.0f}..{empty.high:.0f} us", None, difference_us=empty.json()),
        row("time inside our connector's hooks (clock reads included)", "", f"{hooks.median:.0f} us",
            f"95 % {hooks.low:.0f}..{hooks.high:.0f} us", None, hooks_us=hooks.json(), by_hook_us=by_hook),
    ]  # fmt: skip


def throughput(logs: Path, quick: bool) -> list[Row]:
    """Batches of distinct prompts: nothing is ever found."""
    rounds = 4 if quick else 24
    options = EngineOptions(dtype=DTYPE, kv_bytes=256 << 20, tokens_max=2048, step_tokens_max=2048, requests_max=16)
    ratios, stored, completed, dropped, rates = [], 0, 0, 0, []
    with sides(logs, none=options, connector=replace(options, connector=L1)) as pair:
        warm_up(pair, lambda side: side.ask("throughput", 900, 8, 500, 16))
        for number in range(rounds):
            runs = {side.name: side.ask("throughput", 1 + number, 16, 500, 64) for side in in_turn(pair, number)}
            ratios.append(runs["none"]["seconds"] / runs["connector"]["seconds"])
            rates.append(runs["none"]["tokens"] / runs["none"]["seconds"])
            stored += runs["connector"]["stored"]
            completed += runs["connector"]["completed"]
            dropped += runs["connector"]["dropped"]
            assert runs["connector"]["hit_tokens"] == 0
    ratio = spread(ratios)
    share = stored / completed
    return [
        row("engine throughput with the connector at 0 % hits, to none", ">= 0.98, >= 99 % stored",
            f"{ratio.median:.3f}, {share:.1%} stored, {dropped} dropped",
            f"95 % {ratio.low:.3f}..{ratio.high:.3f}, {ratio.samples} pairs",
            ratio.median >= 0.98 and share >= 0.99, ratio=ratio.json(), ratios=ratios,
            tokens_per_s=statistics.median(rates), completed_slots=completed, stored_slots=stored, dropped=dropped),
    ]  # fmt: skip


def miss_and_hit(logs: Path, quick: bool) -> list[Row]:
    """1,500-token prompts on the tiny model: never seen, then seen."""
    pairs = 6 if quick else 60
    tokens, answer = 1500, 8
    options = EngineOptions(dtype=DTYPE, kv_bytes=128 << 20, tokens_max=2048, step_tokens_max=2048, requests_max=4)
    loading = replace(options, connector=L1 | {"load_mode": "layerwise"})
    misses: dict[str, list[float]] = {"none": [], "connector": []}
    busy: dict[str, list[float]] = {"none": [], "connector": []}
    hits: list[float] = []
    tails: list[float] = []
    with sides(logs, none=options, connector=loading) as pair:
        warm_up(pair, lambda side: [side.ask("first_token", 900 + at, tokens, answer) for at in range(3)])
        slot = pair["connector"].ask("slot_tokens")
        covered = (tokens - 1) // slot * slot
        before = pair["connector"].ask("counts")
        for number in range(pairs):
            for side in in_turn(pair, number):
                run = side.ask("first_token", number, tokens, answer)
                assert run["cached"] == 0, f"{side.name} found {run['cached']} tokens of a new prompt"
                misses[side.name].append(run["first_s"] * 1e3)
                busy[side.name].append(run["busy_s"] * 1e3)
            # The same prompts again, or for the engine without a connector a prompt that differs after what a
            # connector would have covered: it computes the same tail behind a hit of its own cache.
            for side in in_turn(pair, number):
                # Both overwrite the engine's KV memory, so that both begin with the same caches of the processor.
                side.ask("forget" if side.name == "connector" else "overwrite")
                head = 0 if side.name == "connector" else covered
                run = side.ask("first_token", number, tokens, answer, head)
                assert run["cached"] == covered, f"{side.name}: {run['cached']} of {covered} tokens were there"
                (hits if side.name == "connector" else tails).append(run["first_s"] * 1e3)
        after = pair["connector"].ask("counts")
        stored = after["planner"]["stored_blocks"] - before["planner"]["stored_blocks"]
        dropped = sum(after["planner"][name] for name in ("refused", "over_share", "failed_stores"))
        loaded = (after["store"]["loaded_bytes"] - before["store"]["loaded_bytes"]) // pairs
        copy_ms = pair["connector"].ask("copy_seconds", loaded, 16 << 10) * 1e3
    added, processor = (
        spread([(ours / plain - 1) * 100 for ours, plain in zip(times["connector"], times["none"], strict=True)])
        for times in (misses, busy)
    )
    expected = pairs * (tokens // slot)
    excess = spread([hit - tail for hit, tail in zip(hits, tails, strict=True)])
    none_ms = statistics.median(misses["none"])
    hit, tail = spread(hits), spread(tails)
    limit = tail.median + 2 + copy_ms
    return [
        row("added TTFT on a miss, tiny model (4 layers), 1,500-token prompts", "<= 2 %", f"{added.median:.1f} %",
            f"95 % {added.low:.1f}..{added.high:.1f} %, {pairs} pairs; none {none_ms:.1f} ms; "
            f"{stored}/{expected} slots stored, {dropped} dropped",
            added.median <= 2 and stored >= expected, added_percent=added.json(), none_ms=spread(misses["none"]).json(),
            connector_ms=spread(misses["connector"]).json(), stored_slots=stored, completed_slots=expected),
        row("the same in processor time of the engine's thread", "", f"{processor.median:.1f} %",
            f"95 % {processor.low:.1f}..{processor.high:.1f} %", None, added_percent=processor.json()),
        row("TTFT of the same prompts on a hit (layer by layer)",
            f"<= tail + 2 ms + copy = {limit:.2f} ms", f"{hit.median:.2f} ms",
            f"{hit.low:.2f}..{hit.high:.2f} ms; tail alone {tail.median:.2f} ms, copy {copy_ms:.2f} ms, "
            f"excess {excess.low:.2f}..{excess.high:.2f} ms; {covered} tokens covered",
            hit.median <= limit, hit_ms=hit.json(), tail_ms=tail.json(), copy_ms=copy_ms, excess_ms=excess.json(),
            loaded_bytes=loaded, covered_tokens=covered),
    ]  # fmt: skip


def cached_prompt(logs: Path, quick: bool) -> list[Row]:
    """2,000-token prompts on the demo's model: computed by one engine, loaded by the other."""
    pairs = 2 if quick else 6
    vocabulary = DEMO.config["vocab_size"]
    options = EngineOptions(
        model=DEMO.name, dtype=DTYPE, kv_bytes=512 << 20, tokens_max=2072, step_tokens_max=512, requests_max=2
    )
    ratios, colds, warms, cached = [], [], [], 0
    with sides(logs, none=options, connector=replace(options, connector=L1)) as pair:
        warm_up(pair, lambda side: side.ask("first_token", 900, 300, 2, 0, vocabulary))
        for number in range(pairs):
            pair["connector"].ask("first_token", number, 2000, 2, 0, vocabulary)
            pair["connector"].ask("forget")
            runs = {
                side.name: side.ask("first_token", number, 2000, 2, 0, vocabulary) for side in in_turn(pair, number)
            }
            cached = runs["connector"]["cached"]
            assert cached >= 1900, f"only {cached} tokens were loaded"
            colds.append(runs["none"]["first_s"])
            warms.append(runs["connector"]["first_s"])
            ratios.append(warms[-1] / colds[-1])
    ratio = spread(ratios)
    return [
        row("TTFT of a fully cached 2,000-token prompt to computing it (the demo's model)", "<= 0.1",
            f"{ratio.median:.3f}", f"{ratio.low:.3f}..{ratio.high:.3f}, {pairs} pairs; "
            f"{statistics.median(warms):.3f} s to {statistics.median(colds):.2f} s, {cached} tokens loaded",
            ratio.median <= 0.1, ratio=ratio.json(), cold_s=colds, warm_s=warms, cached_tokens=cached),
    ]  # fmt: skip


MEASURES: dict[str, Callable[[Path, bool], list[Row]]] = {
    "idle_step": idle_step,
    "throughput": throughput,
    "miss_and_hit": miss_and_hit,
    "cached_prompt": cached_prompt,
}


def warm_up(pair: dict[str, Side], work: Callable[[Side], Any]) -> None:
    """Lets each engine allocate, compile and reserve what it does only once."""
    for side in pair.values():
        work(side)
        side.ask("ready")


def in_turn(pair: dict[str, Side], number: int) -> list[Side]:
    """The sides in the order of this round: the first of one round is the last of the next."""
    order = list(pair.values())
    return order if number % 2 == 0 else order[::-1]


if __name__ == "__main__":
    sys.exit(main())
