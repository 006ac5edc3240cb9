"""The demo's verdict: it fails when a token differs, when nothing was loaded, and when its control passes."""

import sys
from collections.abc import Callable
from dataclasses import replace

import pytest

from demo import demo

COLD = demo.Answer(tokens=[1, 2, 3], computed_tokens=2000, loaded_tokens=0, ttft_s=4.0)
WARM = demo.Answer(tokens=[1, 2, 3], computed_tokens=16, loaded_tokens=1984, ttft_s=0.2)
CONTROL = replace(WARM, tokens=[1, 7, 7])

CASES: dict[str, tuple[demo.Answer, demo.Answer, demo.Answer, str]] = {
    "a token differs": (COLD, replace(WARM, tokens=[1, 2, 4]), CONTROL, "tokens differ between the engines"),
    "nothing loaded": (COLD, replace(COLD, ttft_s=0.2), CONTROL, "computed a prompt that it should have loaded"),
    "control passes": (COLD, WARM, WARM, "the control gave the right tokens without the loaded bytes"),
    "control claims nothing": (COLD, WARM, COLD, "the control claimed no hit"),
    "slab was not empty": (replace(COLD, loaded_tokens=64), WARM, CONTROL, "loaded tokens from an empty slab"),
}


def _engines(*answers: demo.Answer) -> Callable[..., list[demo.Answer]]:
    lives = iter(answers)
    return lambda title, options, prompts, log: [next(lives)] * len(prompts)


@pytest.fixture
def one_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["demo", "--prompts", "1"])


@pytest.mark.usefixtures("one_prompt")
@pytest.mark.parametrize(("cold", "warm", "control", "fault"), CASES.values(), ids=CASES.keys())
def test_a_fault_is_an_exit_status(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cold: demo.Answer,
    warm: demo.Answer,
    control: demo.Answer,
    fault: str,
) -> None:
    monkeypatch.setattr(demo, "run_engine", _engines(cold, warm, control))
    assert demo.main() == 1
    said = capsys.readouterr().out
    assert "FAILED" in said
    assert fault in said


@pytest.mark.usefixtures("one_prompt")
def test_no_fault_is_a_pass(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(demo, "run_engine", _engines(COLD, WARM, CONTROL))
    assert demo.main() == 0
    assert "PASSED" in capsys.readouterr().out
