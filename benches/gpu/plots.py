"""Pictures of the results, where matplotlib is installed.

python -m benches.gpu.plots DIR     # again, from DIR/results.json
"""

import json
import sys
from pathlib import Path
from typing import Any

Numbers = dict[str, Any]


def draw(document: Numbers, out: Path) -> list[str]:
    """Draws what there is; returns what stood in the way."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return [f"no pictures: matplotlib is not installed here; python -m benches.gpu.plots {out} draws them later"]
    note = ": meaningless times" if document["facts"]["fake"] else ""
    title = f"{document['facts'].get('gpu', '')}{note}"
    numbers = {name: part["numbers"] for name, part in document["parts"].items()}
    if numbers.get("rates", {}).get("rates"):
        _rates(pyplot, numbers["rates"], title, out / "rates.png")
    if numbers.get("interference", {}).get("interference"):
        _interference(pyplot, numbers["interference"]["interference"], title, out / "interference.png")
    if numbers.get("overlap", {}).get("overlap"):
        _overlap(pyplot, numbers["overlap"]["overlap"], title, out / "overlap.png")
    return []


def _rates(pyplot: Any, numbers: Numbers, title: str, path: Path) -> None:
    rows = numbers["rates"]
    counts = sorted({row["count"] for row in rows})
    figure, axes = pyplot.subplots(2, len(counts), figsize=(3.4 * len(counts), 6.4), sharey=True, squeeze=False)
    for line, direction in enumerate(("load", "offload")):
        for column, count in enumerate(counts):
            axis = axes[line][column]
            for name in dict.fromkeys(row["path"] for row in rows):
                here = [r for r in rows if (r["direction"], r["count"], r["path"]) == (direction, count, name)]
                here.sort(key=lambda r: r["piece_bytes"])
                axis.plot([r["piece_bytes"] for r in here], [r["gb_s"] for r in here], marker="o", label=name)
            axis.axhline(numbers["plain_gb_s"][direction]["best"], color="black", linestyle=":", label="plain copy")
            axis.set_xscale("log", base=2)
            axis.set_title(f"{direction}, {count} pieces", fontsize=9)
            axis.set_xlabel("bytes of a piece")
        axes[line][0].set_ylabel("GB/s")
    highest = max([row["gb_s"] for row in rows] + [numbers["plain_gb_s"][way]["best"] for way in ("load", "offload")])
    axes[0][0].set_ylim(0, highest * 1.05)
    axes[0][0].legend(fontsize=8)
    _save(pyplot, figure, title, path)


def _interference(pyplot: Any, rows: list[Numbers], title: str, path: Path) -> None:
    figure, axis = pyplot.subplots(figsize=(9, 0.32 * len(rows) + 1.5))
    names = [f"{r['work']}, {r['direction']}, {r['path']}, {r['piece_bytes'] // 1024} KiB" for r in rows]
    low = [r["speed"] - r["speed_low"] for r in rows]
    high = [r["speed_high"] - r["speed"] for r in rows]
    axis.barh(names, [r["speed"] for r in rows], xerr=[low, high], color="tab:blue", ecolor="black", capsize=2)
    axis.axvline(1, color="black", linestyle=":")
    axis.invert_yaxis()
    axis.set_xlabel("speed of the work beside copies, to undisturbed")
    axis.tick_params(axis="y", labelsize=7)
    _save(pyplot, figure, title, path)


def _overlap(pyplot: Any, rows: list[Numbers], title: str, path: Path) -> None:
    figure, axis = pyplot.subplots(figsize=(7, 3.6))
    parts = {"load_ms": "load", "compute_ms": "compute", "layerwise_ms": "layer by layer", "before_ms": "load first"}
    width = 0.8 / len(parts)
    for index, (key, label) in enumerate(parts.items()):
        places = [at + index * width for at in range(len(rows))]
        axis.bar(places, [row[key] for row in rows], width, label=label)
    axis.set_xticks([at + 1.5 * width for at in range(len(rows))], [row["case"] for row in rows])
    axis.set_ylabel("ms")
    axis.legend(fontsize=8)
    _save(pyplot, figure, title, path)


def _save(pyplot: Any, figure: Any, title: str, path: Path) -> None:
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for said in draw(json.loads((folder / "results.json").read_text()), folder):
        print(said)
