"""What both sides took for the same, in turn, as a row: the ratio of neighbours."""

from collections.abc import Sequence
from typing import Any

from benches.compare.side import one_line
from benches.rows import Row, row
from benches.spread import spread


def pair_row(what: str, ours_us: Sequence[float], theirs_us: Sequence[float], beside: str = "", **details: Any) -> Row:
    """The median of the ratios of neighbours, and what both took.

    Args:
        what: Was measured.
        ours_us: Microseconds of our side, a number a round.
        theirs_us: Those of the peer in the same rounds.
        beside: More to show behind the times.
        details: More for the row's details.
    """
    ratio = spread([mine / other for mine, other in zip(ours_us, theirs_us, strict=True)])
    mine, other = spread(ours_us), spread(theirs_us)
    # Where the interval holds 1 neither side is shown to be quicker.
    met = True if ratio.high <= 1 else False if ratio.low > 1 else None
    took = f"{mine.median:.4g} to {other.median:.4g} us"
    return row(
        what,
        "<= 1",
        f"{ratio.median:.3g}",
        f"{ratio.low:.3g}..{ratio.high:.3g}, {ratio.samples} rounds; {took}{beside}",
        met,
        **{"ratio": ratio.json(), "ours_us": mine.json(), "theirs_us": other.json(), **details},
    )


def error_row(what: str, error: Exception) -> Row:
    """A comparison that could not be made."""
    return row(what, "", "**could not be measured**", one_line(str(error)), None, error=str(error))
