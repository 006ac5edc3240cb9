"""No error in a hook reaches the engine, and none of them is silent."""

import logging
import time
from typing import Any

import pytest

pytest.importorskip("vllm")

from aibrix_connector import shield as shield_module
from aibrix_connector.shield import LOGGED_PER_HOOK, Shield, returning, shielded


class PanicException(BaseException):
    """As the native module raises it."""


class Hooks:
    def __init__(self) -> None:
        self.shield = Shield()
        self.error: BaseException | None = None
        self.poisoned = 0
        self.recovered: list[Any] = []

    def poison(self) -> None:
        self.poisoned += 1

    def _recover(self, *args: Any, **kwargs: Any) -> str:
        self.recovered.append((args, kwargs))
        return "a miss"

    @shielded(_recover)
    def hook(self, number: int, word: str = "") -> str:
        """The hook's own words."""
        if self.error is not None:
            raise self.error
        return f"{number}{word}"

    @shielded(returning(None))
    def layer(self, name: str) -> None:
        pass

    def bare(self, name: str) -> None:
        pass


def test_without_an_error_the_hook_answers() -> None:
    hooks = Hooks()
    assert hooks.hook(1, word="x") == "1x"
    assert (hooks.hook.__name__, hooks.hook.__doc__) == ("hook", "The hook's own words.")
    assert hooks.shield.take_count() == 0


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> list[logging.LogRecord]:
    seen: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = seen.append  # type: ignore[assignment,method-assign]
    logger = logging.getLogger("test-shield")
    logger.addHandler(handler)
    monkeypatch.setattr(shield_module, "logger", logger)
    return seen


def test_an_error_is_logged_counted_and_recovered_from(records: list[logging.LogRecord]) -> None:
    hooks = Hooks()
    hooks.error = RuntimeError("broken")
    for _ in range(5):
        assert hooks.hook(7, word="y") == "a miss"
    assert hooks.recovered == [((7,), {"word": "y"})] * 5
    assert hooks.shield.take_count() == 5
    assert hooks.shield.take_count() == 0
    assert len(records) == LOGGED_PER_HOOK
    assert all(record.exc_info and record.exc_info[1] is hooks.error for record in records)
    assert records[0].getMessage() == (
        "hook failed (error 1 of this hook): the engine goes on without the cache's help"
    )
    assert records[-1].getMessage().endswith("; further ones in this hook are only counted")
    assert hooks.poisoned == 0


def test_a_panic_of_native_code_poisons(records: list[logging.LogRecord]) -> None:
    hooks = Hooks()
    hooks.error = PanicException("index out of bounds")
    assert hooks.hook(1) == "a miss"
    assert hooks.poisoned == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), GeneratorExit()])
def test_requests_to_end_are_passed_on(error: BaseException) -> None:
    hooks = Hooks()
    hooks.error = error
    with pytest.raises(type(error)):
        hooks.hook(1)


def test_a_recovery_that_cannot_make_the_answer_true_raises(records: list[logging.LogRecord]) -> None:
    class Unsafe(Hooks):
        def _fail(self, *_: Any) -> None:
            raise MemoryError

        @shielded(_fail)
        def load(self) -> None:
            raise RuntimeError

    with pytest.raises(MemoryError):
        Unsafe().load()


def test_the_shield_costs_a_function_call() -> None:
    """Printed for the record; the bound is ten times what was measured, so that a busy machine does not fail it."""
    hooks = Hooks()

    def measure(call: Any) -> float:
        best = float("inf")
        for _ in range(5):
            began = time.perf_counter()
            for _ in range(20_000):
                call("model.layers.0.self_attn.attn")
            best = min(best, (time.perf_counter() - began) / 20_000)
        return best

    cost_us = (measure(hooks.layer) - measure(hooks.bare)) * 1e6
    print(f"\nshield: {cost_us:.3f} us a call")
    assert cost_us < 2
