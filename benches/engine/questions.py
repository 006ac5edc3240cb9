"""What a side is asked: functions that run beside the engine and measure with its own clock."""

import time
from typing import Any

import numpy as np

from tests.e2e.engine import Engine
from tests.e2e.inside import add, planner_stats, settle, store_stats
from tests.e2e.options import CONNECTOR
from tests.models import prompt

Measured = dict[str, Any]


def first_token(engine: Engine, seed: int, tokens: int, answer: int, head: int = 0, vocabulary: int = 512) -> Measured:
    """Answers one prompt and times its first token, from the moment the engine is given the prompt.

    Args:
        engine: The engine.
        seed: Of the prompt.
        tokens: Tokens of the prompt.
        answer: Tokens to generate; only the first is timed.
        head: Take this many leading tokens from the prompt of seed `seed`, the others from another one.
        vocabulary: Of the model.

    Returns:
        Seconds to the first token, by the clock and of the engine's thread on a processor, the prompt tokens that were
        not computed, and seconds until all is stored.
    """
    ids = prompt(seed, tokens, vocabulary)
    if head:
        ids = ids[:head] + prompt(seed + 1_000_000, tokens - head, vocabulary)
    llm = engine.llm.llm_engine
    began, began_busy = time.perf_counter(), time.thread_time()
    add(engine, f"request-{time.monotonic_ns()}", ids, answer=answer)
    first_s, busy_s, cached = 0.0, 0.0, 0
    while llm.has_unfinished_requests():
        for output in llm.step():
            if not first_s and output.outputs[0].token_ids:
                first_s, busy_s = time.perf_counter() - began, time.thread_time() - began_busy
                cached = output.num_cached_tokens or 0
    whole_s = time.perf_counter() - began
    _settle(engine)
    settled_s = time.perf_counter() - began
    return {"first_s": first_s, "busy_s": busy_s, "whole_s": whole_s, "cached": cached, "settled_s": settled_s}


def generated(engine: Engine, ids: list[int], answer: int, deadline_s: float = 60.0) -> Measured:
    """Answers one prompt, with any connector, and steps on until its blocks are stored and free.

    Args:
        engine: The engine.
        ids: The prompt.
        answer: Tokens to generate.
        deadline_s: The longest this may take.

    Returns:
        Seconds to the first token, to the last, and until all is stored; the prompt tokens that were not computed, and
        the tokens that were generated.
    """
    llm, core = engine.llm.llm_engine, engine.core()
    began = time.perf_counter()
    add(engine, f"request-{time.monotonic_ns()}", ids, answer=answer)
    first_s, cached, tokens = 0.0, 0, list[int]()
    while llm.has_unfinished_requests():
        if time.perf_counter() - began > deadline_s:
            raise TimeoutError(f"a prompt of {len(ids)} tokens was not answered within {deadline_s:g} s")
        for output in llm.step():
            tokens = list(output.outputs[0].token_ids)
            cached = output.num_cached_tokens or 0
            if not first_s and tokens:
                first_s = time.perf_counter() - began
    whole_s = time.perf_counter() - began
    # A connector that still reads blocks keeps their request; ours says that it has work left.
    while core.scheduler.requests or (core.scheduler.connector and core.scheduler.connector.has_pending_push_work()):
        if time.perf_counter() - began > deadline_s:
            raise TimeoutError(f"the blocks of {len(ids)} tokens were not stored within {deadline_s:g} s")
        core.step_fn()
        time.sleep(0.001)
    settled_s = time.perf_counter() - began
    return {"first_s": first_s, "whole_s": whole_s, "settled_s": settled_s, "cached": cached, "tokens": tokens}


def request_steps(
    engine: Engine, seed: int, count: int, tokens: int, answer: int, vocabulary: int = 512
) -> list[Measured]:
    """Answers prompts that nothing is there of, and times each step.

    Args:
        engine: The engine.
        seed: Of the first prompt; the next ones count on.
        count: Prompts that come together.
        tokens: Tokens of a prompt.
        answer: Tokens to generate for each.
        vocabulary: Of the model.

    Returns:
        For each step what it computed and how long it took: `prefill`, pairs of tokens that were there and tokens that
        were computed; `decode`, tokens that were there of each sequence that got one; `wall` and `cpu`, milliseconds by
        the clock and of the engine's thread on a processor.
    """
    llm = engine.llm.llm_engine
    scheduler = engine.core().scheduler
    names = [f"request-{time.monotonic_ns()}-{position}" for position in range(count)]
    for position, name in enumerate(names):
        add(engine, name, prompt(seed + position, tokens, vocabulary), answer=answer)
    steps: list[Measured] = []
    computed = dict.fromkeys(names, 0)
    while llm.has_unfinished_requests():
        began, began_busy = time.perf_counter(), time.thread_time()
        llm.step()
        wall, cpu = (time.perf_counter() - began) * 1e3, (time.thread_time() - began_busy) * 1e3
        now = {request.request_id: request.num_computed_tokens for request in scheduler.requests.values()}
        prefill, decode = [], []
        for name, before in list(computed.items()):
            # vLLM makes its own names of ours. The last step ends a request: it has computed a token of its answer.
            after = next((value for key, value in now.items() if key.startswith(name)), before + 1)
            if after == before:
                continue
            if before < tokens:
                prefill.append([before, after - before])
            else:
                decode.append(before)
            computed[name] = after
            if after == tokens + answer - 1:
                del computed[name]
        # Steps without any are those in which the engine looks after jobs that have ended.
        if prefill or decode:
            steps.append({"prefill": prefill, "decode": decode, "wall": wall, "cpu": cpu})
    _settle(engine)
    return steps


def kv_blocks(engine: Engine) -> int:
    """Blocks of the engine's KV cache."""
    return int(engine.core().scheduler.kv_cache_config.num_blocks)


def tail_step(engine: Engine, head_seed: int, head: int, seed: int, tail: int) -> Measured:
    """Computes the tail of a prompt whose head is there, and stores nothing of it.

    Args:
        engine: The engine.
        head_seed: Of the leading tokens.
        head: Number of leading tokens.
        seed: Of the others.
        tail: Number of the others.

    Returns:
        Seconds to the first token, steps until it came, and the prompt tokens that were not computed.
    """
    ids = prompt(head_seed, head) + prompt(seed, tail)
    wish = {"kvcache": {"skip_store": True}} if _is_ours(engine) else None
    llm = engine.llm.llm_engine
    began = time.perf_counter()
    add(engine, f"request-{time.monotonic_ns()}", ids, answer=1, kv_transfer_params=wish)
    first_s, steps, cached = 0.0, 0, 0
    while llm.has_unfinished_requests():
        steps += 1
        for output in llm.step():
            first_s = time.perf_counter() - began
            cached = output.num_cached_tokens or 0
    _settle(engine)
    return {"first_s": first_s, "steps": steps, "cached": cached}


def tails(engine: Engine, head_seeds: list[int], head: int, tail_seed: int, tail: int, together: bool) -> Measured:
    """Computes tails of prompts whose heads are somewhere, and stores nothing of them.

    Args:
        engine: The engine.
        head_seeds: Of the leading tokens, one for each prompt.
        head: Number of leading tokens.
        tail_seed: Of the others of the first prompt; the next ones count on.
        tail: Number of the others.
        together: All prompts at once, or each when the one before has its token.

    Returns:
        Seconds from when a prompt was given to its first token, and its tokens that were not computed, by prompt;
        and what both sides counted meanwhile.
    """
    prompts = [prompt(seed, head) + prompt(tail_seed + position, tail) for position, seed in enumerate(head_seeds)]
    wish = {"kvcache": {"skip_store": True}}
    llm = engine.llm.llm_engine
    before = counts(engine)
    first_s, cached = [0.0] * len(prompts), [0] * len(prompts)
    for group in [range(len(prompts))] if together else [[position] for position in range(len(prompts))]:
        began = time.perf_counter()
        names = {f"request-{time.monotonic_ns()}-{position}": position for position in group}
        for name, position in names.items():
            add(engine, name, prompts[position], answer=1, kv_transfer_params=wish)
        while llm.has_unfinished_requests():
            for output in llm.step():
                position = names[output.request_id]
                first_s[position] = time.perf_counter() - began
                cached[position] = output.num_cached_tokens or 0
        settle(engine)
    after = counts(engine)
    grown = {
        side: {name: value - before[side].get(name, 0) for name, value in after[side].items() if isinstance(value, int)}
        for side in after
    }
    return {"first_s": first_s, "cached": cached, "counts": grown}


def throughput(engine: Engine, seed: int, requests: int, tokens: int, answer: int) -> Measured:
    """Answers distinct prompts, all at once. The time ends when everything is computed *and* stored.

    Returns:
        Seconds in all, tokens in and out, and the slots that were completed and stored.
    """
    before = _counts(engine)
    llm = engine.llm.llm_engine
    began = time.perf_counter()
    for index in range(requests):
        add(engine, f"request-{seed}-{index}", prompt(seed * 1000 + index, tokens), answer=answer)
    while llm.has_unfinished_requests():
        llm.step()
    computed_s = time.perf_counter() - began
    _settle(engine)
    seconds = time.perf_counter() - began
    after = _counts(engine)
    # The last token is sampled and never computed, so its KV does not exist.
    slot = slot_tokens(engine)
    completed = requests * ((tokens + answer - 1) // slot) if slot else 0
    return {
        "seconds": seconds,
        "computed_s": computed_s,
        "tokens": requests * (tokens + answer),
        "completed": completed,
        **{name: after[name] - before[name] for name in after},
    }


def decode_steps(engine: Engine, seed: int, tokens: int, answer: int) -> Measured:
    """Times decode steps of one short request that fills no slot, with the connector and without it in turn.

    Returns:
        Differences of neighbouring steps, with less without, by the clock and of the engine's thread on a processor;
        and the steps without the connector. All in seconds. The first steps (prefill, and those in which caches are
        cold) are left out.
    """
    llm = engine.llm.llm_engine
    attach(engine, True)
    add(engine, f"request-{seed}", prompt(seed, tokens), answer=answer)
    for _ in range(3):
        llm.step()
    steps: list[tuple[bool, float, float]] = []
    while llm.has_unfinished_requests():
        # Pairs of steps, whose order alternates: without, with, with, without.
        attached = len(steps) % 4 in (1, 2)
        attach(engine, attached)
        began, began_busy = time.perf_counter(), time.thread_time()
        llm.step()
        steps.append((attached, time.perf_counter() - began, time.thread_time() - began_busy))
    attach(engine, True)
    # The last step also ends the request.
    pairs = list(zip(steps[0:-1:2], steps[1:-1:2], strict=False))
    sign = [1 if second[0] else -1 for _, second in pairs]
    return {
        "steps_s": [sign[at] * (second[1] - first[1]) for at, (first, second) in enumerate(pairs)],
        "busy_s": [sign[at] * (second[2] - first[2]) for at, (first, second) in enumerate(pairs)],
        "without_s": [step for attached, step, _ in steps[:-1] if not attached],
    }


def plain_steps(engine: Engine, seed: int, tokens: int, answer: int) -> int:
    """The same steps, all with the connector, untimed; returns their number."""
    llm = engine.llm.llm_engine
    add(engine, f"request-{seed}", prompt(seed, tokens), answer=answer)
    steps = 0
    while llm.has_unfinished_requests():
        llm.step()
        steps += 1
    return steps


HOOKS = (
    "on_new_request",
    "get_num_new_matched_tokens",
    "update_state_after_alloc",
    "build_connector_meta",
    "update_connector_output",
    "take_events",
    "has_pending_push_work",
    "has_pending_block_frees",
    "has_connector_metadata",
    "bind_connector_metadata",
    "start_load_kv",
    "wait_for_layer_load",
    "save_kv_layer",
    "wait_for_save",
    "get_transfer_results",
    "get_finished",
    "get_block_ids_with_load_errors",
    "get_kv_connector_stats",
    "get_kv_connector_kv_cache_events",
    "build_connector_worker_meta",
    "clear_connector_metadata",
)
"""Every method of the connector that a step may call."""

_hook_ns: dict[str, list[int]] = {}


def time_hooks(engine: Engine, in_processor: bool = False) -> None:
    """From now on counts the time spent in the connector's hooks. Slows a step itself: measure nothing else then.

    Args:
        engine: The engine.
        in_processor: Time of the engine's thread on a processor, without what others take from it meanwhile.
    """
    kind = type(engine.core().scheduler.connector)
    depth = [0]

    def timed(name: str, inner: Any) -> Any:
        count = _hook_ns.setdefault(name, [0, 0])
        clock = time.thread_time_ns if in_processor else time.perf_counter_ns

        def outer(*args: Any, **kwargs: Any) -> Any:
            # A hook that calls another is counted once.
            if depth[0]:
                return inner(*args, **kwargs)
            depth[0] = 1
            began = clock()
            try:
                return inner(*args, **kwargs)
            finally:
                count[0] += clock() - began
                count[1] += 1
                depth[0] = 0

        return outer

    for name in HOOKS:
        if hasattr(kind, name):
            setattr(kind, name, timed(name, getattr(kind, name)))


def hook_times(engine: Engine) -> dict[str, list[int]]:
    """Returns nanoseconds and calls by hook since the last call of this."""
    taken = {name: list(count) for name, count in _hook_ns.items()}
    for count in _hook_ns.values():
        count[:] = [0, 0]
    return taken


def steps_with_requests(engine: Engine, seeds: list[int], tokens: int, every: int) -> list[float]:
    """Decodes one long answer, beside which a prompt comes again and again. After `time_hooks`.

    Args:
        engine: The engine.
        seeds: Of the prompts, in the order in which they come.
        tokens: Of each prompt.
        every: Steps from one to the next.

    Returns:
        Microseconds in the connector's hooks, by step; the first has a prompt, and then each `every`-th.
    """
    llm = engine.llm.llm_engine
    add(engine, f"long-{time.monotonic_ns()}", prompt(999_999, 8), answer=len(seeds) * every)
    llm.step()
    hook_times(engine)
    taken = []
    for number in range(len(seeds) * every - 1):
        if number % every == 0:
            seed = seeds[number // every]
            add(engine, f"request-{time.monotonic_ns()}", prompt(seed, tokens), answer=4)
        llm.step()
        taken.append(sum(total for total, _ in hook_times(engine).values()) / 1e3)
    while llm.has_unfinished_requests():
        llm.step()
    settle(engine)
    return taken


def attach(engine: Engine, wanted: bool) -> None:
    """Takes the connector out of the engine, or puts it back; nothing may be in flight.

    Without it the scheduler and the model runner take the paths of an engine that never had one. Two processes with
    the same engine differ by some percent in speed for all their life, depending on where their memory happens to lie;
    one process with and without the connector does not.
    """
    from vllm.distributed.kv_transfer import kv_transfer_state

    state: Any = kv_transfer_state
    scheduler = engine.core().scheduler
    kept = _taken_out.setdefault(id(engine), (scheduler.connector, state._KV_CONNECTOR_AGENT))
    scheduler.connector, state._KV_CONNECTOR_AGENT = kept if wanted else (None, None)


_taken_out: dict[int, tuple[Any, Any]] = {}


def forget(engine: Engine) -> None:
    """Empties the engine's own cache, so that what is not computed can only come from the connector."""
    engine.forget()


def overwrite(engine: Engine) -> None:
    """Overwrites the engine's KV memory and keeps its cache: what it finds there is nonsense, in the usual time."""
    engine.overwrite_kv()


def ready(engine: Engine, deadline_s: float = 60.0) -> Measured:
    """Waits until the slab is reserved, which runs in the background, and returns what the connector counts."""
    if not _is_ours(engine):
        return {}
    until = time.monotonic() + deadline_s
    while time.monotonic() < until:
        engine.generate([[5, 6, 7]], tokens=2)
        stats = planner_stats(engine)
        if stats.get("slots") and not stats["slots_unusable"]:
            break
        time.sleep(0.2)
    return planner_stats(engine)


def counts(engine: Engine) -> Measured:
    """Returns everything that both sides have counted."""
    return {"planner": planner_stats(engine), "store": store_stats(engine)}


def slot_tokens(engine: Engine) -> int:
    """Tokens of a slot; 0 without a connector."""
    if not _is_ours(engine):
        return 0
    side = engine.core().scheduler.connector._scheduler
    return int(side._slot_blocks * side._groups[0].block_tokens)


def copy_seconds(engine: Engine, total_bytes: int, piece_bytes: int) -> float:
    """Median time of a plain copy of `total_bytes` in pieces to places far apart: what moving them costs at least."""
    pieces = max(1, total_bytes // piece_bytes)
    source: Any = np.ones((2 * pieces, piece_bytes), np.uint8)
    target = np.zeros_like(source)
    order = np.random.default_rng(0).permutation(2 * pieces)[:pieces]
    times = []
    for _ in range(15):
        began = time.perf_counter()
        for index in order:
            target[index] = source[index]
        times.append(time.perf_counter() - began)
    return sorted(times)[len(times) // 2]


def _is_ours(engine: Engine) -> bool:
    attached = engine.core().scheduler.connector is not None
    return attached and engine.options.connector_name == CONNECTOR


def _settle(engine: Engine) -> None:
    if _is_ours(engine):
        settle(engine)


def _counts(engine: Engine) -> Measured:
    if not _is_ours(engine):
        return {}
    stats = planner_stats(engine)
    return {
        "stored": stats["stored_blocks"],
        "already_stored": stats["already_stored_blocks"],
        # The directory's counts appear with the slab, a moment after the start.
        "dropped": sum(stats.get(name, 0) for name in ("refused", "over_share", "not_worth", "failed_stores")),
        "hit_tokens": stats["hit_tokens"],
    }
