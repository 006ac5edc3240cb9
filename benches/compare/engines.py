"""A vLLM engine without a connector, with ours, and with LMCache's: prompts at 0, 50 and 100 % hits.

Three equal engines answer the same prompts in turn; which comes first alternates. Before each the engine's own cache is
emptied and overwritten, so that what is not computed comes from the connector. A round has a prompt that nobody has
seen, one whose first half is that of the first, and the first again: at 0, 50 and 100 % hits. The first round after a
start is *cold*, the others are *warm*, and engines and caches are started several times. An answer that found more or
fewer tokens than the case says, or has other tokens than the engine without a connector, is an error.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from benches.compare.lmcache_server import remove_shared_memory
from benches.compare.pairs import error_row
from benches.compare.side import Side, SideError
from benches.rows import Row, row
from benches.spread import Spread, spread
from tests.models import MODELS, prompt

PROGRAM = ("-m", "benches.compare.engines_side")
NONE, OURS, LMCACHE, OWN_CACHE = "none", "ours", "lmcache", "own cache"
SIDES = (NONE, OURS, LMCACHE)
SHARES = (0, 50, 100)
GENERATED = 8
CAPACITY_BYTES = 1 << 30
START_TIMEOUT_S = 240.0
ASK_TIMEOUT_S = 120.0
IDLE_S = 2.0
ROUNDS_MIN = 6
"""Of fewer even the lowest and the highest are no 95 % interval of the median: 2 / 2^5 is more than 5 %."""

Start = Callable[[str], Side]
"""Starts the program of the side of that name."""


@dataclass(frozen=True)
class Case:
    """What is asked of all sides.

    A prompt is one token longer than what can be found of it: the last one is always computed. Half of it are whole
    blocks of the engine (128 tokens) and whole chunks of LMCache (256).
    """

    model: str
    tokens: int
    lives: int
    """Starts of each engine and its cache."""
    warm_rounds: int
    """In each life, after the cold one."""

    def __str__(self) -> str:
        return f"{self.model}, {self.tokens:,} tokens"

    @property
    def tokens_max(self) -> int:
        """Tokens that the engine must have room for, in whole blocks."""
        return -(-(self.tokens + GENERATED) // 128) * 128

    def covered(self, share: int) -> int:
        """Tokens that must be found."""
        return (self.tokens - 1) * share // 100


# One engine of `demo` computes 1,537 tokens in about a second.
FULL = (Case("tiny", 1_537, 6, 6), Case("tiny", 4_097, 3, 5), Case("demo", 1_537, 2, 4))
QUICK = (Case("tiny", 1_537, 1, 2), Case("tiny", 4_097, 1, 1))

Answers = dict[str, dict[str, Any]]
"""By side: what it answered to one prompt."""


class Samples:
    """All answers of one case, and what the sides cost."""

    def __init__(self) -> None:
        self.rounds: dict[tuple[int, bool], list[Answers]] = {}
        """By share and whether it was the first after a start."""
        self.costs: dict[str, dict[str, list[float]]] = {}

    def pairs(self, share: int, cold: bool, one: str, other: str, what: str) -> list[tuple[float, float]]:
        """Neighbouring answers of two sides."""
        rounds = self.rounds.get((share, cold), [])
        return [(float(at[one][what]), float(at[other][what])) for at in rounds if one in at and other in at]


def compare(start: Start, cases: Sequence[Case], absent: Mapping[str, SideError]) -> tuple[list[Row], dict[str, str]]:
    """The rows of all cases and the versions of the sides.

    Args:
        start: Starts a side.
        cases: To measure.
        absent: Sides that cannot be had, and why.
    """
    rows = [error_row(f"engine: {name}", error) for name, error in absent.items()]
    versions: dict[str, str] = {}
    shared_memory = f"kvcache-compare-{os.getpid()}"
    with ExitStack() as running:
        # Where the side that has made it is killed, it stays.
        running.callback(remove_shared_memory, shared_memory)
        sides: dict[str, Side] = {}
        for case in cases:
            # One that failed in another case begins anew.
            sides = {
                name: sides.get(name) or running.enter_context(start(name)) for name in SIDES if name not in absent
            }
            samples = Samples()
            for life in range(case.lives):
                failed = one_life(case, life, sides, samples, versions, shared_memory)
                for name, error in failed.items():
                    rows.append(error_row(f"engine: {name}, {case}", error))
                    sides.pop(name).close()
                print(f"{case}: {life + 1} of {case.lives} starts done", flush=True)
            rows += rows_of(case, samples)
    return rows, versions


def one_life(
    case: Case, life: int, sides: Mapping[str, Side], samples: Samples, versions: dict[str, str], shared_memory: str
) -> dict[str, SideError]:
    """Starts all engines, asks them in turn, and ends them; returns the sides that failed, which are asked no more."""
    asked = Asked(dict(sides))
    size = {"capacity_bytes": CAPACITY_BYTES, "shared_memory": shared_memory}
    for name, answer in asked.each(
        life, START_TIMEOUT_S, do="start", model=case.model, tokens_max=case.tokens_max, **size
    ):
        versions[name] = str(answer["version"])
    begun = dict(asked.each(life, ASK_TIMEOUT_S, do="costs", idle_s=IDLE_S))
    for number in range(1 + case.warm_rounds):
        for share, ids in prompts(case, 1_000 * life + number):
            answers = asked.prompt(case, share, ids, life + number)
            samples.rounds.setdefault((share, number == 0), []).append(answers)
    ended = dict(asked.each(life, ASK_TIMEOUT_S, do="costs", idle_s=0.0))
    for name in begun.keys() & ended.keys():
        costs = samples.costs.setdefault(name, {})
        costs.setdefault("begun_bytes", []).append(float(begun[name]["memory_bytes"]))
        costs.setdefault("ended_bytes", []).append(float(ended[name]["memory_bytes"]))
        costs.setdefault("idle_cpu_s", []).append(float(begun[name]["idle_cpu_s"]) / IDLE_S)
    dict(asked.each(life, ASK_TIMEOUT_S, do="stop"))
    return asked.failed


def prompts(case: Case, seed: int) -> list[tuple[int, list[int]]]:
    """The prompts of a round, with the share that must be found of each."""
    vocabulary = int(MODELS[case.model].config["vocab_size"])
    new = prompt(2 * seed, case.tokens, vocabulary)
    half = case.covered(50)
    # Random tokens may agree at the place where prompts part, which would be no error: no block is shared for it.
    return [(0, new), (50, new[:half] + prompt(2 * seed + 1, case.tokens - half, vocabulary)), (100, new)]


class Asked:
    """Sides that are asked in turn; one that fails is asked no more."""

    def __init__(self, sides: dict[str, Side]) -> None:
        self.failed: dict[str, SideError] = {}
        self._sides = sides

    def each(self, turn: int, timeout_s: float, **question: Any) -> list[tuple[str, dict[str, Any]]]:
        """Asks all for the same; who comes first alternates with `turn`."""
        answers = []
        for name in list(self._sides)[:: 1 if turn % 2 else -1]:
            answer = self._ask(name, timeout_s, question)
            if answer is not None:
                answers.append((name, answer))
        return answers

    def prompt(self, case: Case, share: int, ids: list[int], turn: int) -> Answers:
        """Asks all for the same prompt. The answers of those that did less or something else are left out."""
        question = {"do": "request", "ids": ids, "generate": GENERATED}
        answers = dict(self.each(turn, ASK_TIMEOUT_S, forget=True, **question))
        if share == 100 and NONE in answers:
            # What the engine has just computed is in its own cache: nothing can be quicker than that.
            own = self._ask(NONE, ASK_TIMEOUT_S, {**question, "forget": False})
            if own is not None:
                answers[OWN_CACHE] = own
        for name, answer in list(answers.items()):
            wanted = 0 if name == NONE else case.covered(share)
            if answer["cached"] != wanted:
                self._fail(name, f"found {answer['cached']} instead of {wanted} of {case.tokens} tokens", answers)
            elif NONE in answers and answer["tokens"] != answers[NONE]["tokens"]:
                tokens = f"{answer['tokens']} instead of {answers[NONE]['tokens']}"
                self._fail(name, f"generated {tokens} with {wanted} tokens found", answers)
        return answers

    def _ask(self, name: str, timeout_s: float, question: dict[str, Any]) -> dict[str, Any] | None:
        try:
            return self._sides[name].ask(timeout_s, **question)
        except SideError as error:
            self.failed[name] = error
            del self._sides[name]
            return None

    def _fail(self, name: str, why: str, answers: Answers) -> None:
        del answers[name]
        side = NONE if name == OWN_CACHE else name
        self.failed[side] = SideError(f"{name}: {why}")
        self._sides.pop(side, None)


def rows_of(case: Case, samples: Samples) -> list[Row]:
    """Times by share, first cold and then warm, and then what the sides cost."""
    rows = []
    for cold in (True, False):
        for share in SHARES:
            pairs = [(OURS, NONE), (LMCACHE, NONE), (OURS, LMCACHE)]
            if share == 100 and not cold:
                pairs.append((OURS, OWN_CACHE))
            for one, other in pairs:
                if samples.pairs(share, cold, one, other, "first_s"):
                    rows.append(time_row(case, samples, share, cold, one, other))
    if OURS in samples.costs and NONE in samples.costs:
        rows += [cost_row(case, samples, name) for name in (OURS, LMCACHE) if name in samples.costs]
    return rows


def time_row(case: Case, samples: Samples, share: int, cold: bool, one: str, other: str) -> Row:
    """The median of the ratios of neighbours' first tokens, and what both took."""
    measured: dict[str, tuple[Spread, Spread, Spread]] = {}
    for what in ("first_s", "whole_s", "cpu_s"):
        pairs = samples.pairs(share, cold, one, other, what)
        ratios = spread([first / second for first, second in pairs])
        measured[what] = (ratios, spread([first for first, _ in pairs]), spread([second for _, second in pairs]))
    ratio, mine, theirs = measured["first_s"]
    # What a connector costs on a miss is for `benches.engine.measures`, in one engine: no target here.
    targeted = one == OURS and other != OWN_CACHE and (other != NONE or share > 0)
    met = None
    if targeted and ratio.samples >= ROUNDS_MIN:
        # Where the interval holds 1 neither side is shown to be quicker.
        met = True if ratio.high <= 1 else False if ratio.low > 1 else None
    whole, cpu = measured["whole_s"], measured["cpu_s"]
    return row(
        f"TTFT of {NAMES[one]} to {NAMES[other]}, {case}, {share} % hits, {'cold' if cold else 'warm'}",
        "<= 1" if targeted else "",
        f"{ratio.median:.3g}",
        f"{ratio.low:.3g}..{ratio.high:.3g}, {ratio.samples} rounds; {took(mine, theirs)}; "
        f"{GENERATED} tokens {whole[0].median:.3g}: {took(whole[1], whole[2])}; "
        f"processor time {cpu[0].median:.3g}: {took(cpu[1], cpu[2])}",
        met,
        ratio=ratio.json(),
        covered_tokens=case.covered(share),
        **{f"{what}_ratio": measured[what][0].json() for what in ("whole_s", "cpu_s")},
        **{f"{what}_{at}": values[at].json() for what, values in measured.items() for at in (1, 2)},
    )


def cost_row(case: Case, samples: Samples, name: str) -> Row:
    """Memory beyond that of the engine without a connector, and processor time while nothing happens."""
    mine, none = samples.costs[name], samples.costs[NONE]
    begun, ended = (
        spread([(one - other) / (1 << 20) for one, other in zip(mine[at], none[at], strict=False)])
        for at in ("begun_bytes", "ended_bytes")
    )
    idle = spread([value * 100 for value in mine["idle_cpu_s"]])
    idle_none = spread([value * 100 for value in none["idle_cpu_s"]])
    return row(
        f"memory of {NAMES[name]} beyond {NAMES[NONE]}, {case}, at the end",
        "",
        f"{ended.median:.0f} MiB",
        f"{ended.low:.0f}..{ended.high:.0f} MiB, {ended.samples} starts; {begun.median:.0f} MiB after the start; "
        f"cache of {CAPACITY_BYTES >> 20} MiB; idle {idle.median:.2f} % of a core, without {idle_none.median:.2f} %",
        None,
        begun_mib=begun.json(),
        ended_mib=ended.json(),
        idle_percent=idle.json(),
        none_begun_mib=spread([value / (1 << 20) for value in none["begun_bytes"]]).json(),
    )


NAMES = {NONE: "no connector", OURS: "ours", LMCACHE: "LMCache MP", OWN_CACHE: "a hit of vLLM's own cache"}


def took(mine: Spread, theirs: Spread) -> str:
    """Two medians of seconds, in milliseconds."""
    return f"{mine.median * 1e3:.4g} to {theirs.median * 1e3:.4g} ms"
