"""Draws a folder of results: `python -m benches.plots FOLDER` prints the names of the files that it has written.

It runs in the environment of the developer tools (`scripts/ensure_dev_tools.sh`), which has matplotlib. Each plot is
made from one JSON file of the folder; what was not measured is not drawn.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benches.rows import margin

Rows = list[dict[str, Any]]
# Distinguishable with any colour vision (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
LABEL_MAX = 96
LINE_INCHES = 0.24


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print((__doc__ or "").split("\n")[0], file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    for name, draw in PLOTS.items():
        path = folder / f"{name}.png"
        if draw(folder, path):
            print(path.name)
    for path in draw_compared(folder):
        print(path.name)
    return 0


def rows_of(folder: Path, part: str) -> Rows:
    """The rows of a part; none if it has left no file."""
    path = folder / f"{part}.json"
    return list(json.loads(path.read_text())["rows"]) if path.exists() else []


def draw_eviction(folder: Path, path: Path) -> bool:
    """Hit ratio over capacity, a panel for each trace."""
    rows = [row["details"] for row in rows_of(folder, "eviction") if "ratios" in row["details"]]
    traces = list(dict.fromkeys(row["trace"] for row in rows))
    if not traces:
        return False
    figure, panels = pyplot.subplots(1, len(traces), figsize=(4.2 * len(traces), 3.4), squeeze=False)
    for panel, trace in zip(panels[0], traces, strict=True):
        points = [row for row in rows if row["trace"] == trace]
        x = [100 * row["share"] for row in points]
        for colour, policy in zip(COLOURS, points[0]["ratios"], strict=False):
            y = [row["ratios"][policy] for row in points]
            # Nobody can be better: drawn as a limit, not as a contender.
            style = "--" if policy == "optimum" else "-"
            panel.plot(x, y, style, color=colour, marker=".", label=policy)
        panel.plot(x, [row["best_known"] for row in points], "x", color=COLOURS[5], label="best known of seven others")
        panel.set(title=trace, xlabel="capacity, % of the distinct blocks", ylim=(0, None))
        logarithmic(panel, "x", dense=True)
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("block hit ratio, contiguous prefix")
    panels[0][0].legend(fontsize="small")
    return save(figure, path)


def draw_engine_model(folder: Path, path: Path) -> bool:
    """Mean time to the first token over the rate, a panel for each workload."""
    rows = [row["details"] for row in rows_of(folder, "engine_model") if "workload" in row["details"]]
    workloads = list(dict.fromkeys(row["workload"] for row in rows))
    if not workloads:
        return False
    figure, panels = pyplot.subplots(1, len(workloads), figsize=(4.2 * len(workloads), 3.4), squeeze=False)
    for panel, workload in zip(panels[0], workloads, strict=True):
        points = [row for row in rows if row["workload"] == workload]
        for colour, setup in zip(COLOURS, points[0]["ttft_s"], strict=False):
            y = [row["ttft_s"][setup]["mean"] for row in points]
            panel.plot([row["qps"] for row in points], y, color=colour, marker=".", label=setup)
        panel.set(title=f"{workload}, simulated", xlabel="requests/s")
        logarithmic(panel, "y", dense=False)
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("mean time to the first token, s")
    panels[0][0].legend(fontsize="small")
    return save(figure, path)


def draw_targets(folder: Path, path: Path) -> bool:
    """How far each number is on the good side of its target, as a factor."""
    margins = []
    for part in sorted(folder.glob("*.json")):
        if part.stem == "compare":
            continue
        for row in rows_of(folder, part.stem):
            if (factor := margin(row["target"], row["reached"])) is not None and part.stem != "eviction":
                margins.append((f"{part.stem}: {row['what']}", factor, row["met"]))
    if not margins:
        return False
    figure, panel = pyplot.subplots(figsize=(11, 1 + LINE_INCHES * len(margins)))
    colours = [COLOURS[2] if met else COLOURS[1] for _, _, met in margins]
    positions = range(len(margins))
    panel.barh(positions, [factor - 1 for _, factor, _ in margins], left=1, color=colours)
    panel.set_yticks(positions, [short(what) for what, _, _ in margins], fontsize="small")
    panel.invert_yaxis()
    panel.axvline(1, color="black", linewidth=1)
    panel.margins(y=0.01)
    panel.set(xlabel="times better than its target (left of 1: missed)")
    logarithmic(panel, "x", dense=True)
    panel.grid(axis="x", which="both", alpha=0.3)
    return save(figure, path)


def draw_compared(folder: Path) -> list[Path]:
    """For each part of the side-by-side comparison its ratios with their intervals."""
    path = folder / "compare.json"
    documents = json.loads(path.read_text()) if path.exists() else {}
    drawn = []
    for part, document in documents.items():
        rows = [row for row in document["rows"] if "ratio" in row["details"]]
        if not rows:
            continue
        figure, panel = pyplot.subplots(figsize=(11, 1.2 + LINE_INCHES * len(rows)))
        for position, row in enumerate(rows):
            ratio = row["details"]["ratio"]
            colour = {True: COLOURS[2], False: COLOURS[1], None: COLOURS[7]}[row["met"]]
            ends = [[ratio["median"] - ratio["low"]], [ratio["high"] - ratio["median"]]]
            panel.errorbar(ratio["median"], position, xerr=ends, fmt="o", color=colour, markersize=4)
        panel.set_yticks(range(len(rows)), [short(row["what"]) for row in rows], fontsize="small")
        panel.invert_yaxis()
        panel.axvline(1, color="black", linewidth=1)
        panel.margins(y=0.01)
        panel.set(xlabel="ratio, median and its 95 % interval", title=f"{part}: what is named, as a ratio")
        logarithmic(panel, "x", dense=False)
        panel.grid(axis="x", which="both", alpha=0.3)
        drawn.append(folder / f"compare-{part}.png")
        save(figure, drawn[-1])
    return drawn


def logarithmic(panel: Axes, axis: str, dense: bool) -> None:
    """A logarithmic axis whose ticks are plain numbers, with 2 and 5 between the powers of ten if `dense`."""
    panel.set(**{f"{axis}scale": "log"})
    ticks = panel.xaxis if axis == "x" else panel.yaxis
    ticks.set_major_locator(LogLocator(subs=(1, 2, 5) if dense else (1,)))
    ticks.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ticks.set_minor_formatter(NullFormatter())


def short(text: str) -> str:
    """The text as a label."""
    text = text.replace("`", "").replace("$", r"\$")
    return text if len(text) <= LABEL_MAX else text[: LABEL_MAX - 1] + "…"


def save(figure: Figure, path: Path) -> bool:
    """Writes what is drawn, the same bytes for the same numbers."""
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
    return True


PLOTS: dict[str, Callable[[Path, Path], bool]] = {
    "targets": draw_targets,
    "eviction": draw_eviction,
    "engine_model": draw_engine_model,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
