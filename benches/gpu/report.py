"""What a part of the run has found: checks that pass, fail or are skipped, and numbers. On disk after every change."""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Status = Literal["pass", "fail", "skip"]


@dataclass(frozen=True)
class Options:
    """How much is done."""

    quick: bool = False
    fake: bool = False
    sabotage: str | None = None
    """Break this on purpose: ``byte`` changes one that was copied, ``wait`` leaves out waits."""

    @property
    def repeats(self) -> int:
        """Repetitions of a measurement."""
        return 2 if self.fake else 3 if self.quick else 7


@dataclass(frozen=True)
class Check:
    """One thing that had to hold."""

    name: str
    status: Status
    detail: str


@dataclass
class Report:
    """The findings of one part."""

    path: Path | None = None
    checks: list[Check] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    ended: bool = False
    """Whether the part came to its end."""
    _began: float = field(default_factory=time.monotonic, repr=False)

    def check(self, name: str, holds: bool, detail: str = "") -> bool:
        """Notes whether something holds; returns it."""
        self._add(Check(name, "pass" if holds else "fail", detail))
        return holds

    def skip(self, name: str, why: str) -> None:
        """Notes what cannot be looked at here."""
        self._add(Check(name, "skip", why))

    def note(self, name: str, value: Any) -> None:
        """Notes numbers."""
        self.numbers[name] = value
        self.save()

    def save(self) -> None:
        """Writes everything so far."""
        self.seconds = round(time.monotonic() - self._began, 2)
        if self.path is not None:
            beside = self.path.with_suffix(".new")
            beside.write_text(json.dumps(self.json()))
            beside.replace(self.path)

    def json(self) -> dict[str, Any]:
        """The findings as a JSON object."""
        checks = [asdict(check) for check in self.checks]
        return {"seconds": self.seconds, "ended": self.ended, "checks": checks, "numbers": self.numbers}

    def _add(self, check: Check) -> None:
        self.checks.append(check)
        print(f"  {check.status}  {check.name}{': ' + check.detail if check.detail else ''}", flush=True)
        self.save()
