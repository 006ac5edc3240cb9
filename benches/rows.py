"""One row of the results: what was measured, the target, what was reached. Written as JSON, shown as Markdown."""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """A measurement against its target."""

    what: str
    target: str
    reached: str
    spread: str
    met: bool | None
    """None where there is no target."""
    load_average: float
    """Of the last minute, at the end of the measurement: above the number of cores, others were running."""
    details: dict[str, Any] = field(default_factory=dict)


def row(what: str, target: str, reached: str, spread: str, met: bool | None, **details: Any) -> Row:
    """A row as of now."""
    return Row(what, target, reached, spread, met, round(os.getloadavg()[0], 2), details)


def table(rows: Iterable[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| what | target | reached | spread | met | load |", "|---|---|---|---|---|---|"]
    for one in rows:
        met = {None: "", True: "yes", False: "**no**"}[one.met]
        lines.append(f"| {one.what} | {one.target} | {one.reached} | {one.spread} | {met} | {one.load_average} |")
    return "\n".join(lines)


def write(rows: Iterable[Row], path: Path | None) -> None:
    """Prints the table and, with a path, writes the rows there."""
    rows = list(rows)
    print(table(rows), flush=True)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([asdict(one) for one in rows], indent=1) + "\n")


def margin(target: str, reached: str) -> float | None:
    """How many times better than its target a number is; None if one of them is no single number, or is zero."""
    bound = re.match(r"^(<=|>=)\s.*?([\d.,]*\d)\s*(%|[µu]s|ms|bytes a slot|x)?$", target.strip())
    value = re.match(r"^([\d.,]*\d)\s*(%|[µu]s|ms|x)?$", reached.strip())
    if not bound or not value:
        return None
    limit, number = (float(text.replace(",", "")) for text in (bound[2], value[1]))
    if limit <= 0 or number <= 0:
        return None
    return limit / number if bound[1] == "<=" else number / limit
