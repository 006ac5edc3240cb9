"""Keeps errors in our hooks from taking the engine down: they are logged, counted, and become misses.

A connector runs inside the engine's own processes, where an exception ends every request. So each hook has a
*recovery*: what it returns instead, and what it has to do so that the answer is true. Recoveries follow three rules:

1. What was promised to the engine and may not have happened is reported as failed, so that the engine computes it.
2. Nothing is reported while a copy may still touch the engine's memory.
3. Where not even that can be done, the recovery raises: an engine that stops is better than one that answers wrongly.

Errors of configuration are not caught: they come from the constructor and from registration, before any request.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, Protocol, TypeVar

from vllm.logger import init_logger

logger = init_logger("vllm.aibrix_connector.shield")

LOGGED_PER_HOOK = 3
"""Tracebacks that are logged of one hook; later ones are only counted."""

P = ParamSpec("P")
T = TypeVar("T")


class Shield:
    """Counts what was caught in one connector object."""

    def __init__(self) -> None:
        self._caught: dict[str, int] = {}
        self._total = 0
        self._reported = 0

    def caught(self, hook: str, error: BaseException) -> None:
        """Counts an error, and logs it with its traceback if it is one of the hook's first."""
        count = self._caught.get(hook, 0) + 1
        self._caught[hook] = count
        self._total += 1
        if count <= LOGGED_PER_HOOK:
            last = "; further ones in this hook are only counted" if count == LOGGED_PER_HOOK else ""
            logger.error(
                "%s failed (error %d of this hook): the engine goes on without the cache's help%s",
                hook,
                count,
                last,
                exc_info=error,
            )

    def take_count(self) -> int:
        """Returns the errors since the last call."""
        new, self._reported = self._total - self._reported, self._total
        return new


class Shielded(Protocol):
    """An object whose hooks are shielded."""

    shield: Shield
    quiet: bool
    """Whether this step has nothing for hooks that say what they return then."""

    def poison(self) -> None:
        """Native code has panicked, so that its state cannot be trusted: uses it no more."""


def is_panic(error: BaseException) -> bool:
    """Whether native code has panicked. Such an error is no ``Exception``, so that nobody catches it by accident."""
    return type(error).__name__ == "PanicException"


def recoverable(error: BaseException) -> bool:
    """Whether an error is to become a miss: not one that asks the process to end."""
    return isinstance(error, Exception) or is_panic(error)


def shielded(
    recovery: Callable[..., Any], when_quiet: Callable[[], Any] | None = None
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Makes a hook that does not raise.

    Without an error it costs one more function call, a fraction of a microsecond: hooks that are called for every layer
    do the same in place instead.

    Args:
        recovery: Called with the hook's own arguments when the hook has raised; what it returns is the hook's result.
        when_quiet: Makes what a step without work gets instead of a call of the hook. Most steps are such, and each
            function they enter has left the processor's caches since the last one.
    """

    def decorate(hook: Callable[P, T]) -> Callable[P, T]:
        name = hook.__name__
        call: Callable[..., Any] = hook

        @functools.wraps(hook)
        def guarded(self: Shielded, *args: Any, **kwargs: Any) -> Any:
            try:
                return call(self, *args, **kwargs)
            except BaseException as error:
                if not recoverable(error):
                    raise
                self.shield.caught(name, error)
                if is_panic(error):
                    self.poison()
            return recovery(self, *args, **kwargs)

        if when_quiet is None:
            return guarded  # type: ignore[return-value]

        @functools.wraps(hook)
        def quiet(self: Shielded, *args: Any, **kwargs: Any) -> Any:
            return when_quiet() if self.quiet else guarded(self, *args, **kwargs)

        return quiet  # type: ignore[return-value]

    return decorate


def nothing() -> None:
    """For a hook that returns nothing in a quiet step."""


def returning(value: Any) -> Callable[..., Any]:
    """A recovery that has nothing to do."""

    def recovery(*args: Any, **kwargs: Any) -> Any:
        return value

    return recovery
