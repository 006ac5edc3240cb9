"""Medians and how far they can be trusted."""

import random
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

RESAMPLES = 4000
"""Enough for the ends of a 95 % interval to be stable in the third digit."""


@dataclass(frozen=True)
class Spread:
    """A median, the 95 % interval of that median, and the samples it stands on."""

    median: float
    low: float
    high: float
    samples: int

    def __str__(self) -> str:
        return f"{self.median:.4g} [{self.low:.4g}, {self.high:.4g}]"

    def json(self) -> dict[str, Any]:
        """The same as a JSON object."""
        return asdict(self)


def spread(values: Sequence[float], seed: int = 0) -> Spread:
    """The median and its 95 % interval by bootstrap: medians of samples drawn with replacement.

    Args:
        values: At least one measurement.
        seed: Of the draws, so that a result can be computed again.
    """
    draws = random.Random(seed)
    medians = sorted(statistics.median(draws.choices(values, k=len(values))) for _ in range(RESAMPLES))
    low, high = medians[int(RESAMPLES * 0.025)], medians[int(RESAMPLES * 0.975)]
    return Spread(statistics.median(values), low, high, len(values))
