"""The page of results: what was checked, and what was reached beside the targets of the issue."""

from collections.abc import Iterator
from typing import Any

from benches.rows import Row, row, table

KIB, MIB = 1 << 10, 1 << 20
Numbers = dict[str, Any]


def failures(document: Numbers) -> list[Numbers]:
    """Every check that failed."""
    return [check for part in document["parts"].values() for check in part["checks"] if check["status"] == "fail"]


def page(document: Numbers) -> str:
    """The results as Markdown."""
    facts = document["facts"]
    lines = [f"# {facts.get('gpu', 'unknown device')}", ""]
    if facts["fake"]:
        lines += ["**A fake device: the checks are real, the times say nothing about any GPU.**", ""]
    elif facts["quick"]:
        lines += ["**A quick run: fewer points and repetitions.**", ""]
    lines += [
        "Written by `benches/gpu/run.sh`; do not edit. Rates are ratios to the fastest plain pinned copy of 256 MiB in "
        "the same run.",
        "",
        "## Checks",
        "",
        "| part | pass | fail | skipped | seconds |",
        "|---|---|---|---|---|",
    ]
    notes = []
    for name, part in document["parts"].items():
        count = {status: sum(c["status"] == status for c in part["checks"]) for status in ("pass", "fail", "skip")}
        ended = "" if part["ended"] else " (cut)"
        lines.append(f"| {name} | {count['pass']} | {count['fail']} | {count['skip']} | {part['seconds']}{ended} |")
        for check in part["checks"]:
            if check["status"] != "pass":
                notes.append(f"- **{check['status']}**: {name}: {check['name']}: {check['detail']}")
    lines += ["", *notes] if notes else []
    rows = list(speed(document))
    if rows:
        lines += ["", "## Speed", "", table(rows)]
    lines += ["", *rate_tables(document)]
    lines += ["## Machine", "", *(f"- {name}: {value}" for name, value in facts.items())]
    return "\n".join(lines) + "\n"


def speed(document: Numbers) -> Iterator[Row]:
    """What was reached beside the targets, with none for a fake."""
    fake = document["facts"]["fake"]
    numbers = {name: part["numbers"] for name, part in document["parts"].items()}
    for one in (
        *rate_rows(numbers.get("rates", {})),
        *overlap_rows(numbers.get("overlap", {})),
        *interference_rows(numbers.get("interference", {})),
        *pinning_rows(numbers.get("pinning", {})),
    ):
        yield Row(one.what, "fake: none", one.reached, one.spread, None, one.load_average) if fake else one


def at_least(what: str, target: float, reached: float, spread: str, valid: bool = True) -> Row:
    """A row with a lower bound; `valid` if the measurement says anything."""
    return row(what, f">= {target}", f"{reached:.3f}", spread, reached >= target if valid else None)


def rate_rows(numbers: Numbers) -> Iterator[Row]:
    """Pieces against the plain peak, by the path that is chosen, at the worst of the batches of 16 MiB and more."""
    chosen = {(c["direction"], c["piece_bytes"], c["count"]): c["chosen"] for c in numbers.get("choices", [])}
    taken = [r for r in numbers.get("rates", []) if chosen.get(place(r)) == r["path"]]
    for size, direction, target in (
        (2 * MIB, "load", 0.95),
        (2 * MIB, "offload", 0.95),
        (64 * KIB, "load", 0.95),
        (64 * KIB, "offload", 0.95),
        (16 * KIB, "load", 0.85),
        (16 * KIB, "offload", 0.80),
    ):
        here = [r for r in taken if r["piece_bytes"] == size and r["direction"] == direction]
        here = [r for r in here if r["count"] * size >= 16 * MIB]
        if here:
            worst = min(here, key=lambda r: r["to_plain"])
            spread = f"{worst['path']}, {worst['count']} pieces; {worst['gb_s_low']:.1f}..{worst['gb_s_high']:.1f} GB/s"
            name = f"pieces of {size_name(size)}, {direction}, to plain copies"
            yield at_least(name, target, worst["to_plain"], spread)
    for both in numbers.get("both", []):
        spread = f"{both['gb_s_low']:.1f}..{both['gb_s_high']:.1f} GB/s"
        what = f"both directions at once, pieces of {size_name(both['piece_bytes'])}, to plain copies both ways"
        yield at_least(what, 0.85, both["to_plain"], spread)
    choices = numbers.get("choices", [])
    if choices:
        worst = min(choices, key=lambda c: c["to_best"])
        below = sum(c["to_best"] < 0.95 for c in choices)
        spread = f"{below} of {len(choices)} points below 0.95; the worst: {point_name(worst)}, {worst['chosen']} "
        spread += f"for {worst['best']}; single batches: {min(c['single_to_best'] for c in choices):.2f}"
        yield at_least("choice of path, to the best one, worst point", 0.95, worst["to_best"], spread)
    for one in numbers.get("submission", []):
        if one["count"] == 1024:
            net = one["submit_us"] - one["list_us"]
            what = f"CPU time to submit {one['count']} pieces, {one['path']}"
            yield row(what, "", f"{net:.0f} us", f"and {one['list_us']:.0f} us for the list in Python", None)


def overlap_rows(numbers: Numbers) -> Iterator[Row]:
    """The load that shows."""
    for case in numbers.get("overlap", []):
        reached = case["layerwise_to_longest"]
        spread = f"{case['layerwise_low']:.3f}..{case['layerwise_high']:.3f}; load {case['load_ms']:.2f} ms, compute "
        spread += f"{case['compute_ms']:.2f} ms; whole load first: {case['before_to_longest']:.2f}"
        paths = (f"{batches} by {path}" for way, path, batches, _, _ in case["counts"] if way == "load")
        spread += f"; batches loaded: {', '.join(paths)}"
        what = f"layer-wise load under compute that takes as long, {case['case']}, to the longer of the two"
        yield row(what, "<= 1.05", f"{reached:.3f}", spread, reached <= 1.05)


def interference_rows(numbers: Numbers) -> Iterator[Row]:
    """Compute beside copies."""
    for one in numbers.get("interference", []):
        target = 0.95 if one["work"] == "matrix products" else 0.98
        spread = f"{one['speed_low']:.3f}..{one['speed_high']:.3f}; copies {one['copies_gb_s']:.1f} GB/s"
        valid = one["copies_outlasted_work"]
        spread += "" if valid else "; copies ended before the work: says nothing"
        what = f"{one['work']} during {one['direction']}s, {one['path']}, pieces of {size_name(one['piece_bytes'])}"
        if one["path"] == "auto" and one["direction"] == "offload":
            yield at_least(what, target, one["speed"], spread, valid)
        else:
            yield row(what, "", f"{one['speed']:.3f}", spread, None)


def pinning_rows(numbers: Numbers) -> Iterator[Row]:
    """Pinning."""
    for one in numbers.get("pinning", []):
        what = f"pinning of {'written' if one['touched'] else 'fresh'} memory"
        plain = one.get("cudaHostRegister_pin_s_per_gib")
        beside = "" if plain is None else f"cudaHostRegister {plain:.3f} s per GiB; "
        spread = f"{beside}unpinning {one['ours_unpin_s_per_gib']:.3f} s per GiB"
        yield row(what, "", f"{one['ours_pin_s_per_gib']:.3f} s per GiB", spread, None)


def rate_tables(document: Numbers) -> list[str]:
    """GB/s of every point."""
    numbers = document["parts"].get("rates", {}).get("numbers", {})
    rows = numbers.get("rates", [])
    lines = []
    for direction in ("load", "offload"):
        here = [r for r in rows if r["direction"] == direction]
        if not here:
            continue
        paths = list(dict.fromkeys(r["path"] for r in here))
        plain = numbers["plain_gb_s"][direction]
        lines += [
            f"## {direction}: GB/s, and times of single batches",
            "",
            f"Plain copies: {plain['best']:.2f} at best, median {plain['median']:.2f}. In brackets: a batch on an idle "
            "device, called for from Python.",
            "",
            f"| piece | count | {' | '.join(paths)} | chosen |",
            "|---|---|" + "---|" * (len(paths) + 1),
        ]
        chosen = {place(c): c["chosen"] for c in numbers.get("choices", [])}
        for key in sorted({place(r) for r in here}):
            at = {r["path"]: r for r in here if place(r) == key}
            # A star: submitting took longer than the device was held, so the time may be the CPU's.
            cells = [
                f"{r['gb_s']:.2f}{'' if r['submitted_in_time'] else '*'} ({r['single_us']:.0f} us)"
                for r in (at[path] for path in paths)
            ]
            lines.append(f"| {size_name(key[1])} | {key[2]} | {' | '.join(cells)} | {chosen.get(key, '')} |")
        lines += [
            "",
            "`*`: the CPU was not done with submitting when the device began, so the rate may be the CPU's.",
            "",
        ]
    return lines


def place(numbers: Numbers) -> tuple[str, int, int]:
    """The point that numbers belong to."""
    return numbers["direction"], numbers["piece_bytes"], numbers["count"]


def point_name(numbers: Numbers) -> str:
    """The point in words."""
    return f"{numbers['direction']} of {numbers['count']} x {size_name(numbers['piece_bytes'])}"


def size_name(count: int) -> str:
    """Bytes in KiB or MiB."""
    return f"{count // MIB} MiB" if count >= MIB else f"{count // KIB} KiB"
