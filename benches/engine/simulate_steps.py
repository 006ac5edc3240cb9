"""Measures what `kvcache simulate` is calibrated with: steps and first tokens of a real vLLM engine on the CPU.

    python -m benches.engine.simulate_steps [--quick] [--model demo] [--threads N] --out FOLDER

`steps-CLOCK.json` is for `--calibrate`. It has the steps of one configuration: prompts of one length that share
nothing, computed in chunks, and of answers, with the connector attached and storing. `cases-CLOCK.json` is for
`--predict`. It has times to the first token of that configuration and of others: other lengths, and prompts whose
head the connector loads. The two are measured in turn, so that both have seen the same machine.

CLOCK is `wall`, or `cpu`: time of the engine's thread on a processor, in which everything is computed if it is the only
thread. On a machine that is shared with others the second one still means something. Each time is the median of many.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benches.engine.sides import Side, preload, sides
from tests.e2e.options import EngineOptions, engine_environment
from tests.models import DEMO, MODELS

DTYPE = "float32"
STEP_TOKENS = 256
PROMPT = 1100
"""Tokens of the calibrated prompts: four chunks of 256 and one of 76, so that a step and a token can be told apart."""
ANSWER = 12
TOGETHER, SHORT = 4, 40
"""Beside them, prompts whose answers are computed together: so many, of so many tokens."""

CASES = [
    # name, prompt tokens, hit tokens
    ("calibrated: 1,100 tokens, no hit", PROMPT, 0),
    ("another length: 400 tokens", 400, 0),
    ("another length: 1,900 tokens", 1900, 0),
    ("another hit rate: half of 1,100 tokens", PROMPT, 544),
    ("another hit rate: nine tenths of 1,100 tokens", PROMPT, 992),
    ("both: a third of 1,900 tokens", 1900, 640),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few rounds: shows that it runs, not how fast")
    parser.add_argument("--rounds", type=int, default=12, help="rounds of every measurement (default 12)")
    parser.add_argument("--model", default=DEMO.name, choices=list(MODELS), help="a model of tests/models.py")
    parser.add_argument("--threads", type=int, default=1, help="compute threads of the engine (default 1)")
    parser.add_argument("--out", type=Path, required=True, help="folder for steps.json and cases.json")
    arguments = parser.parse_args()
    # Torch reads it when it is loaded, which nothing above has done.
    os.environ.update(engine_environment(threads=arguments.threads))
    MODELS[arguments.model].folder()
    preload()
    with tempfile.TemporaryDirectory(prefix="kvcache-bench-") as logs:
        measure(Path(logs), arguments)
    return 0


def measure(logs: Path, arguments: argparse.Namespace) -> None:
    """Measures everything in one engine and writes both files."""
    rounds = 2 if arguments.quick else arguments.rounds
    config = MODELS[arguments.model].config
    vocabulary = int(config["vocab_size"])
    options = EngineOptions(
        model=arguments.model, dtype=DTYPE, kv_bytes=512 << 20, tokens_max=2080, step_tokens_max=STEP_TOKENS,
        requests_max=4, connector={"capacity": "2GiB", "load_mode": "layerwise"},
    )  # fmt: skip
    steps: list[list[dict[str, Any]]] = []
    times: dict[tuple[str, str], list[float]] = {(name, clock): [] for name, _, _ in CASES for clock in CLOCKS}
    seeds = iter(range(1, 1_000_000))
    with sides(logs, engine=options) as engines:
        engine = engines["engine"]
        engine.ask("first_token", next(seeds), 600, 2, 0, vocabulary)
        engine.ask("ready")
        slot_tokens = engine.ask("slot_tokens")
        for _ in range(rounds):
            steps.append(engine.ask("request_steps", next(seeds), 1, PROMPT, ANSWER, vocabulary))
            # Of answers, batches and contexts have to differ.
            first = min(next(seeds) for _ in range(TOGETHER))
            steps[-1] += engine.ask("request_steps", first, TOGETHER, SHORT, ANSWER, vocabulary)
            for name, prompt, hit in CASES:
                for clock, ms in first_token_ms(engine, next(seeds), prompt, hit, vocabulary).items():
                    times[name, clock].append(ms)
        copy_s = engine.ask("copy_seconds", 64 << 20, 1 << 20)
        blocks = engine.ask("kv_blocks")
    head = int(config["hidden_size"]) // int(config["num_attention_heads"])
    kv_bytes = 2 * int(config["num_hidden_layers"]) * int(config["num_key_value_heads"]) * head * 4
    gb_s = (64 << 20) / copy_s / 1e9
    profile = {
        "name": f"vllm-cpu-{arguments.model}",
        "block_tokens": options.block_tokens,
        "kv_bytes_per_token": kv_bytes,
        "layers": int(config["num_hidden_layers"]),
        "gpu_blocks": blocks,
        "step_tokens_max": STEP_TOKENS,
        "sequences_max": options.requests_max,
        "compute": {name: 0.0 for name in COSTS},
        "host_link": {"to_device_gb_s": gb_s, "from_device_gb_s": gb_s, "copy_us": 0.0},
        "connector": {"step_us": 0.0, "request_us": 0.0, "block_us": 0.0,
                      "slot_blocks": slot_tokens // options.block_tokens},
        "l1_blocks": (2 << 30) // (kv_bytes * options.block_tokens),
        "origins": {
            "compute": "fitted to the steps in this file; the connector's own work is within them",
            "host_link": "a plain copy of 64 MiB in pieces of 1 MiB, in the same run",
        },
    }  # fmt: skip
    arguments.out.mkdir(parents=True, exist_ok=True)
    for clock in CLOCKS:
        calibration = {"profile": profile, "rounds": rounds, "steps": medians(steps, clock)}
        write(arguments.out / f"steps-{clock}.json", calibration)
        cases = [
            {"name": name, "prompt_tokens": prompt, "hit_tokens": hit, "hit_in": "l1", "ttft_ms": times[name, clock]}
            for name, prompt, hit in CASES
        ]
        write(arguments.out / f"cases-{clock}.json", {"cases": cases})


CLOCKS = ("wall", "cpu")

COSTS = (
    "step_us",
    "prefill_us",
    "prefill_token_us",
    "prefill_context_ns",
    "decode_us",
    "decode_sequence_us",
    "decode_context_ns",
)


def first_token_ms(engine: Side, seed: int, prompt: int, hit: int, vocabulary: int) -> dict[str, float]:
    """Time to the first token of a prompt by clock; the connector has the first `hit` tokens, the engine nothing."""
    if hit:
        engine.ask("first_token", seed, prompt, 1, 0, vocabulary)
    engine.ask("forget")
    answer = engine.ask("first_token", seed, prompt, 1, hit, vocabulary)
    assert answer["cached"] == hit, f"{answer['cached']} of {hit} tokens were there"
    return {"wall": 1e3 * answer["first_s"], "cpu": 1e3 * answer["busy_s"]}


def medians(rounds: list[list[dict[str, Any]]], clock: str) -> list[dict[str, Any]]:
    """The same steps of all rounds become one, with the median of their times by a clock."""
    merged = []
    for same in zip(*rounds, strict=True):
        computed = [{name: step[name] for name in ("prefill", "decode")} for step in same]
        assert all(step == computed[0] for step in computed), "the rounds have other steps"
        merged.append({**computed[0], "ms": statistics.median(step[clock] for step in same)})
    return merged


def write(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON and says where."""
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(path, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
