"""The connector inside the engine: what it costs when there is nothing to gain, and what it gains.

    python -m benches.engine.measures [--quick] [--only NAME]... [--json FILE] [--threads N]

What the connector costs is measured in one engine whose connector is taken out and put back, in turn: two processes
with equal engines differ by some percent for all their life. What it gains is measured between two engines in turn.
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


PROMPT, ANSWER = 12, 48
"""Together less than a slot of the 32-layer model, so that nothing is ever stored."""


def idle_step(logs: Path, quick: bool) -> list[Row]:
    """Decode steps of a 32-layer model in which nothing is loaded or stored."""
    rounds = 12 if quick else 80
    options = EngineOptions(model=DEEP.name, dtype=DTYPE, requests_max=2, tokens_max=512)
    empty = replace(
        options, connector={}, connector_name="IdleConnector", connector_module="benches.engine.idle_connector"
    )
    # Microseconds by connector and clock: of a step with it, less those of a step without it.
    added: dict[tuple[str, str], list[float]] = {}
    step_ms: list[float] = []
    per_step: list[float] = []
    calls: dict[str, list[float]] = {}
    with sides(logs, ours=replace(options, connector=L1), empty=empty) as engines:
        warm_up(engines, lambda side: side.ask("decode_steps", 0, PROMPT, ANSWER))
        for number in range(rounds):
            for side in in_turn(engines, number):
                run = side.ask("decode_steps", 1 + number, PROMPT, ANSWER)
                for clock in ("steps_s", "busy_s"):
                    added.setdefault((side.name, clock), []).extend(value * 1e6 for value in run[clock])
                step_ms += [value * 1e3 for value in run["without_s"]]
        side = engines["ours"]
        stored = side.ask("counts")["planner"]["stored_blocks"]
        assert stored == 0, f"the steps were not idle: {stored} slots were stored"
        side.ask("time_hooks")
        for number in range(max(3, rounds // 4)):
            count = side.ask("plain_steps", 10_000 + number, PROMPT, ANSWER)
            times = side.ask("hook_times")
            per_step.append(sum(total for total, _ in times.values()) / count / 1e3)
            for name, (total, _) in times.items():
                calls.setdefault(name, []).append(round(total / count / 1e3, 2))
    ours, in_processor = spread(added["ours", "steps_s"]), spread(added["ours", "busy_s"])
    vllm, hooks = spread(added["empty", "steps_s"]), spread(per_step)
    by_hook = {name: statistics.median(values) for name, values in calls.items()}
    step = f", {ours.samples} pairs of steps; a step takes {statistics.median(step_ms):.2f} ms"
    what = "step time added by a connector with nothing to do, 32 layers"
    return [
        row(what, "<= 50 us", f"{ours.median:.0f} us", f"95 % {ours.low:.0f}..{ours.high:.0f} us{step}",
            ours.median <= 50, difference_us=ours.json(), step_ms=statistics.median(step_ms)),
        row("the same in processor time of the engine's thread", "", f"{in_processor.median:.0f} us",
            f"95 % {in_processor.low:.0f}..{in_processor.high:.0f} us", None, difference_us=in_processor.json()),
        row("what vLLM itself adds for having a connector: one with empty hooks", "", f"{vllm.median:.0f} us",
            f"95 % {vllm.low:.0f}..{vllm.high:.0f} us", None, difference_us=vllm.json()),
        row("the same beyond what vLLM itself adds", "", f"{ours.median - vllm.median:.0f} us",
            "difference of the medians", None),
        row("time inside our connector's hooks (clock reads included)", "", f"{hooks.median:.0f} us",
            f"95 % {hooks.low:.0f}..{hooks.high:.0f} us", None, hooks_us=hooks.json(), by_hook_us=by_hook),
    ]  # fmt: skip


def throughput(logs: Path, quick: bool) -> list[Row]:
    """Batches of distinct prompts: nothing is ever found."""
    rounds = 4 if quick else 60
    options = EngineOptions(
        dtype=DTYPE, kv_bytes=256 << 20, tokens_max=2048, step_tokens_max=2048, requests_max=16, connector=L1
    )
    ratios, stored, completed, dropped, rates = [], 0, 0, 0, []
    with sides(logs, ours=options) as engines:
        warm_up(engines, lambda side: side.ask("throughput", 9000, 8, 500, 16))
        for number in range(rounds):
            without, ours = with_and_without(
                engines["ours"], number, lambda side, at: side.ask("throughput", 1 + at, 16, 500, 64)
            )
            ratios.append(without["seconds"] / ours["seconds"])
            rates.append(without["tokens"] / without["seconds"])
            stored += ours["stored"]
            completed += ours["completed"]
            dropped += ours["dropped"]
            assert ours["hit_tokens"] == 0
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
    options = EngineOptions(
        dtype=DTYPE, kv_bytes=128 << 20, tokens_max=2048, step_tokens_max=2048, requests_max=4,
        connector=L1 | {"load_mode": "layerwise"},
    )  # fmt: skip
    misses: list[list[dict[str, Any]]] = []
    seen: list[list[dict[str, Any]]] = []
    with sides(logs, ours=options) as engines:
        warm_up(engines, lambda side: [side.ask("first_token", 90_000 + at, tokens, answer) for at in range(3)])
        side = engines["ours"]
        slot = side.ask("slot_tokens")
        covered = (tokens - 1) // slot * slot
        before = side.ask("counts")

        def twice(side: Side, seed: int, attached: bool) -> list[dict[str, Any]]:
            new = side.ask("first_token", seed, tokens, answer)
            assert new["cached"] == 0, f"{new['cached']} tokens of a new prompt were found"
            # The same prompt again, or without the connector one that differs after what a connector would have
            # covered: it computes the same tail behind a hit of the engine's own cache. Both overwrite the engine's
            # KV memory before, so that both begin with the same caches of the processor.
            side.ask("forget" if attached else "overwrite")
            again = side.ask("first_token", seed, tokens, answer, 0 if attached else covered)
            assert again["cached"] == covered, f"{again['cached']} of {covered} tokens were there"
            return [new, again]

        for number in range(pairs):
            without, ours = with_and_without(side, number, lambda side, at: twice(side, at, at % 2 == 1))
            misses.append([without[0], ours[0]])
            seen.append([without[1], ours[1]])
        side.ask("attach", True)
        after = side.ask("counts")
        stored = after["planner"]["stored_blocks"] - before["planner"]["stored_blocks"]
        dropped = sum(after["planner"][name] for name in ("refused", "over_share", "not_worth", "failed_stores"))
        loaded = (after["store"]["loaded_bytes"] - before["store"]["loaded_bytes"]) // pairs
        copy_ms = side.ask("copy_seconds", loaded, 16 << 10) * 1e3
    added, processor = (
        spread([(ours[clock] / without[clock] - 1) * 100 for without, ours in misses])
        for clock in ("first_s", "busy_s")
    )
    expected = pairs * (tokens // slot)
    excess = spread([(hit["first_s"] - tail["first_s"]) * 1e3 for tail, hit in seen])
    none = spread([without["first_s"] * 1e3 for without, _ in misses])
    tail, hit = (spread([run[at]["first_s"] * 1e3 for run in seen]) for at in (0, 1))
    limit = tail.median + 2 + copy_ms
    return [
        row("added TTFT on a miss, tiny model (4 layers), 1,500-token prompts", "<= 2 %", f"{added.median:.1f} %",
            f"95 % {added.low:.1f}..{added.high:.1f} %, {pairs} pairs; none {none.median:.1f} ms; "
            f"{stored}/{expected} slots stored, {dropped} dropped",
            added.median <= 2 and stored >= expected, added_percent=added.json(), none_ms=none.json(),
            stored_slots=stored, completed_slots=expected),
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


def with_and_without(side: Side, number: int, work: Callable[[Side, int], Any]) -> list[Any]:
    """Asks one engine without its connector and with it; which comes first alternates.

    Args:
        side: The engine.
        number: Of the pair.
        work: Gets the engine and a number of its own, even without the connector and odd with it.

    Returns:
        What it returned without the connector, and with it.
    """
    results: list[Any] = [None, None]
    for attached in (number % 2, 1 - number % 2):
        side.ask("attach", bool(attached))
        results[attached] = work(side, 2 * number + attached)
    return results


def in_turn(pair: dict[str, Side], number: int) -> list[Side]:
    """The sides in the order of this round: the first of one round is the last of the next."""
    order = list(pair.values())
    return order if number % 2 == 0 else order[::-1]


if __name__ == "__main__":
    sys.exit(main())
