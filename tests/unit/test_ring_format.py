"""`docs/format.md` says where a ring's slots are: this works it out with nothing but the document."""

import json
import re
from pathlib import Path

import xxhash

DOCUMENT = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
SLOTS = 4096


def product(a: int, b: int) -> int:
    """The product in the field of 64 elements."""
    total = 0
    while b:
        total ^= a if b & 1 else 0
        a <<= 1
        a ^= 0b1000011 if a & 64 else 0
        b >>= 1
    return total


class Member:
    """A member's order of the slots."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seed = xxhash.xxh3_64_intdigest(name.encode())
        number = 0
        for run in re.findall("[0-9]+", name):
            number = (8 * number + int(run)) % 65
        text = re.sub("[0-9]+", "0", name)
        self.slope = (xxhash.xxh3_64_intdigest(text.encode()) % 65 + number) % 65
        order = list(range(64))
        for i in range(63, 0, -1):
            j = self.draw(1, i) % (i + 1)
            order[i], order[j] = order[j], order[i]
        self.level = {line: level for level, line in enumerate(order)}

    def draw(self, purpose: int, index: int) -> int:
        data = (purpose << 32 | index).to_bytes(8, "little")
        return int(xxhash.xxh3_64_intdigest(data, seed=self.seed))

    def rank(self, slot: int) -> int:
        x, y = divmod(slot, 64)
        line, position = (x, y) if self.slope == 64 else (product(self.slope, x) ^ y, x)
        level = self.level[line]
        d = self.draw(2, level)
        return 64 * level + (product(1 + d % 63, position) ^ (d >> 32) % 64)


def owners(names: list[str]) -> list[int]:
    """The owner of every slot, as a place in the sorted names."""
    members = [Member(name) for name in sorted(names)]
    count = len(members)
    left = [max(-(-SLOTS // count), SLOTS * 11 // (10 * count))] * count
    pairs = sorted(
        (member.rank(slot), member.draw(3, slot), place, slot)
        for place, member in enumerate(members)
        for slot in range(SLOTS)
    )
    table = [-1] * SLOTS
    for _, _, place, slot in pairs:
        if table[slot] < 0 and left[place]:
            table[slot] = place
            left[place] -= 1
    return table


def cell(label: str) -> str:
    (line,) = (line for line in DOCUMENT.splitlines() if line.startswith(f"| {label}"))
    return line.split("|")[2].strip().strip("`")


def test_three_members() -> None:
    table = owners(["c:12345", "a:12345", "b:12345"])
    loads = ", ".join(str(table.count(place)) for place in range(3))
    assert loads == cell("`a:12345`, `b:12345`, `c:12345`")
    assert "".join("abc"[place] for place in table[:32]) == cell("the owners of slots 0 to 31")


def test_sixty_four_members() -> None:
    table = owners([f"10.0.0.{host}:12345" for host in range(1, 65)])
    data = b"".join(place.to_bytes(2, "little") for place in table)
    assert str(xxhash.xxh3_64_intdigest(data)) == cell("XXH3-64 of all owners")


def document(names: list[str], version: int) -> str:
    """The published ring of servers at the addresses that are their names."""
    names = sorted(names)
    ranges: list[list[dict[str, int]]] = [[] for _ in names]
    for slot, place in enumerate(owners(names)):
        own = ranges[place]
        if own and own[-1]["end"] == slot - 1:
            own[-1]["end"] = slot
        else:
            own.append({"start": slot, "end": slot})
    nodes = [
        {"name": name, "addr": name.split(":")[0], "port": int(name.split(":")[1]), "slots": slots}
        for name, slots in zip(names, ranges, strict=True)
    ]
    return json.dumps({"nodes": nodes, "version": version}, separators=(",", ":"))


def test_published_ring() -> None:
    text = document(["c:12345", "a:12345", "b:12345"], 3)
    assert str(len(text)) == cell("bytes of that of")
    assert str(xxhash.xxh3_64_intdigest(text.encode())) == cell("its XXH3-64")
    one = json.loads(cell("the document of one server"))
    assert [node["slots"] for node in one["nodes"]] == [[{"start": 0, "end": SLOTS - 1}]]
