"""Looks inside the connector of an engine that lives in this process, and drives it step by step."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from tests.e2e.engine import Engine


def scheduler_side(engine: Engine) -> Any:
    """Returns the connector's scheduler side."""
    return engine.core().scheduler.connector._scheduler


def worker_side(engine: Engine) -> Any:
    """Returns the connector's worker side."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    return get_kv_transfer_group()._worker


def planner_stats(engine: Engine) -> dict[str, Any]:
    """Returns everything that the scheduler side has counted."""
    return dict(scheduler_side(engine)._planner.stats())


def store_stats(engine: Engine) -> dict[str, Any]:
    """Returns everything that the worker side has counted."""
    return dict(worker_side(engine)._store.stats())


def add(
    engine: Engine,
    request_id: str,
    tokens: Sequence[int],
    *,
    answer: int = 40,
    kv_transfer_params: dict[str, Any] | None = None,
) -> None:
    """Gives the engine a request without running it."""
    from vllm import SamplingParams

    extra = {"kv_transfer_params": kv_transfer_params} if kv_transfer_params else None
    sampling = SamplingParams(temperature=0, max_tokens=answer, detokenize=False, ignore_eos=True, extra_args=extra)
    engine.llm.llm_engine.add_request(request_id, {"prompt_token_ids": list(tokens)}, sampling)


def run(
    engine: Engine, each_step: Callable[[int], object] | None = None, *, deadline_s: float = 60.0
) -> dict[str, Any]:
    """Steps the engine until no request is left.

    Args:
        engine: The engine.
        each_step: Called after every step with the number of steps so far.
        deadline_s: The longest this may take.

    Returns:
        Tokens and cached tokens of every request that finished, by id.
    """
    llm = engine.llm.llm_engine
    done: dict[str, Any] = {}
    until, steps = time.monotonic() + deadline_s, 0
    while llm.has_unfinished_requests():
        assert time.monotonic() < until, f"requests are still unfinished after {deadline_s} s and {steps} steps"
        for output in llm.step():
            if output.finished:
                first = output.outputs[0]
                done[output.request_id] = {
                    "tokens": list(first.token_ids),
                    "cached_tokens": output.num_cached_tokens,
                    "finish_reason": first.finish_reason,
                }
        steps += 1
        if each_step is not None:
            each_step(steps)
    return done


def settle(engine: Engine, *, deadline_s: float = 30.0) -> None:
    """Steps the engine, as its own process would, until the connector has nothing in flight."""
    connector = engine.core().scheduler.connector
    until = time.monotonic() + deadline_s
    while connector.has_pending_push_work():
        assert time.monotonic() < until, f"jobs are still in flight after {deadline_s} s"
        engine.core().step_fn()
        time.sleep(0.001)


class Stalls:
    """How long each request was told to ask again, by its id; wraps a scheduler side."""

    def __init__(self, side: Any) -> None:
        self._ask = side.matched_tokens
        self._began: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        side.matched_tokens = self._matched_tokens

    def _matched_tokens(self, request: Any, local_tokens: int) -> tuple[int | None, bool]:
        answer: tuple[int | None, bool] = self._ask(request, local_tokens)
        now = time.monotonic()
        began = self._began.setdefault(request.request_id, now)
        # Until it was last told to wait: when it is asked about again is the engine's affair, which may be busy.
        if answer[0] is None or request.request_id not in self.seconds:
            self.seconds[request.request_id] = now - began
        return answer
