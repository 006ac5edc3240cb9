"""The main job, end to end: a vLLM engine is killed, and its successor does not compute again what it had computed.

1. A real vLLM engine (CPU, a model with random weights) answers five long prompts. The connector offloads their KV
   cache to a slab in shared memory.
2. The engine is killed with SIGKILL, with all its processes.
3. A new engine answers the same prompts. It finds their KV cache in the slab, loads it instead of computing it, and
   must give the same tokens.
4. The control: a third engine has a connector that claims the same hits but loads nothing. Its tokens must differ;
   otherwise equal tokens in step 3 would prove nothing.

Exit status 0 if the new engine loaded, every token is equal and the control failed; 1 otherwise.

Usage: python -m demo.demo [--prompts N] [--tokens N]
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.e2e.engine_client import EngineClient, EngineDied
from tests.e2e.options import CONNECTOR, EngineOptions
from tests.models import DEMO, prompt

SLAB_BYTES = 2 << 30
SLAB_BYTES_MIN = 256 << 20
OUTPUT_TOKENS = 40


@dataclass(frozen=True)
class Answer:
    """What an engine answered to one prompt, and what it cost."""

    tokens: list[int]
    computed_tokens: int
    loaded_tokens: int
    ttft_s: float


def main() -> int:
    arguments = parse_arguments()
    slab_folder, slab_bytes = slab_place()
    logs = Path(tempfile.mkdtemp(prefix="kvcache-demo-logs-"))
    options = engine_options(arguments, slab_folder, slab_bytes)
    prompts = [prompt(seed, arguments.tokens, DEMO.config["vocab_size"]) for seed in range(arguments.prompts)]
    print(f"Model    {DEMO.about}, in {DEMO.folder()}")
    print(f"Prompts  {len(prompts)} of {arguments.tokens} tokens, {OUTPUT_TOKENS} tokens are generated for each")
    print(f"Slab     {slab_folder}, up to {slab_bytes / (1 << 30):.1f} GiB")
    print(f"Logs     {logs}\n", flush=True)
    started = time.monotonic()
    try:
        cold = run_engine("1. First engine", options, prompts, logs / "1-cold.log")
        warm = run_engine("2. New engine", options, prompts, logs / "2-warm.log")
        print_table(cold, warm)
        control_options = replace(
            options, connector={**(options.connector or {}), **json.loads(arguments.control_config)}
        )
        # One prompt is enough for the control.
        control = run_engine(
            "3. Control: claims hits, loads nothing", control_options, prompts[:1], logs / "3-control.log"
        )
        differ = all(claimed.tokens != first.tokens for claimed, first in zip(control, cold, strict=False))
        print(f"   tokens differ from the first engine's: {'yes, as they must' if differ else 'NO'}\n")
    except EngineDied as error:
        print(f"\nFAILED: {error}")
        return 1
    finally:
        shutil.rmtree(slab_folder, ignore_errors=True)
    faults = verdict(cold, warm, control)
    seconds = time.monotonic() - started
    if faults:
        print(f"FAILED after {seconds:.0f} s: {'; '.join(faults)}. Logs are in {logs}")
        return 1
    shutil.rmtree(logs, ignore_errors=True)
    speedup = sum(a.ttft_s for a in cold) / sum(a.ttft_s for a in warm)
    print(
        f"PASSED in {seconds:.0f} s: after SIGKILL the new engine loaded {loaded_share(warm):.0%} of the prompt "
        f"tokens, answered {speedup:.1f} times sooner, and every token is the same; "
        "without the loaded bytes the tokens differ."
    )
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--prompts", type=int, default=5, help="number of prompts (default 5)")
    parser.add_argument("--tokens", type=int, default=2000, help="tokens of a prompt (default 2000)")
    parser.add_argument("--connector", default=CONNECTOR, help="class name of another connector, to compare")
    parser.add_argument("--connector-module", help="module of that class")
    parser.add_argument("--extra-config", help="its extra config as JSON; {slab} stands for the slab's folder")
    parser.add_argument(
        "--control-config",
        default='{"drill": "claim_hits_load_nothing"}',
        help="extra config as JSON that makes it load nothing",
    )
    return parser.parse_args()


def slab_place() -> tuple[Path, int]:
    """A new folder for the slab and the bytes it may take: in shared memory if there is room, else on disk."""
    shared = Path("/dev/shm")
    if shared.is_dir() and os.access(shared, os.W_OK):
        room_bytes = shutil.disk_usage(shared).free * 3 // 4
        if room_bytes >= SLAB_BYTES_MIN:
            return Path(tempfile.mkdtemp(prefix="kvcache-demo-", dir=shared)), min(SLAB_BYTES, room_bytes)
    print("Shared memory (/dev/shm) is too small here; the slab is a file on disk, which also survives the kill.")
    return Path(tempfile.mkdtemp(prefix="kvcache-demo-")), SLAB_BYTES


def engine_options(arguments: argparse.Namespace, slab_folder: Path, slab_bytes: int) -> EngineOptions:
    connector: dict[str, Any] = {"slab_dir": str(slab_folder), "capacity": f"{slab_bytes >> 20}MiB"}
    if arguments.extra_config:
        connector = json.loads(arguments.extra_config.replace("{slab}", str(slab_folder)))
    return EngineOptions(
        model=DEMO.name,
        connector=connector,
        connector_name=arguments.connector,
        connector_module=arguments.connector_module,
        # float32: many processors multiply it several times faster than bfloat16, and in it the order of additions,
        # which differs between a whole and a partial prefill, does not decide between two nearly equal tokens.
        dtype="float32",
        kv_bytes=512 << 20,
        tokens_max=arguments.tokens + OUTPUT_TOKENS + 32,
        step_tokens_max=512,
    )


def run_engine(title: str, options: EngineOptions, prompts: list[list[int]], log: Path) -> list[Answer]:
    """Starts an engine, asks it one prompt after the other, and kills it with SIGKILL."""
    print(f"{title}: starting ...", end="", flush=True)
    answers = []
    threads = min(len(os.sched_getaffinity(0)), 8)
    with EngineClient(options, log, threads=threads) as engine:
        print(f" ready in {engine.wait_ready():.0f} s", flush=True)
        hits_before = external_hits(engine)
        for index, tokens in enumerate(prompts, 1):
            print(f"   prompt {index} of {len(prompts)} ...", end="", flush=True)
            completion = engine.generate([tokens], tokens=OUTPUT_TOKENS)[0]
            hits = external_hits(engine)
            answer = Answer(
                tokens=completion["tokens"],
                computed_tokens=len(tokens) - completion["cached_tokens"],
                loaded_tokens=hits - hits_before,
                ttft_s=completion["ttft_s"],
            )
            hits_before = hits
            answers.append(answer)
            print(
                f" first token after {answer.ttft_s:6.2f} s, {answer.loaded_tokens} tokens from the cache", flush=True
            )
        engine.kill()
    print(f"   killed with SIGKILL (process group {engine.pid})\n", flush=True)
    return answers


def external_hits(engine: EngineClient) -> int:
    """Tokens that vLLM's scheduler has counted as found by the connector."""
    return int(engine.metrics("vllm:external_prefix_cache_hits").get("vllm:external_prefix_cache_hits", 0))


def kv_bytes_per_token() -> int:
    """Bytes of KV of one token of the demo's model: K and V of all layers and heads in float32."""
    config = DEMO.config
    return int(config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"] * 2 * 4)


def print_table(cold: list[Answer], warm: list[Answer]) -> None:
    print("         ------ first engine ------   -------------- new engine ---------------")
    print("prompt   computed   time to first     computed     loaded      time to first     same")
    print("         tokens     token             tokens       from slab   token             tokens")
    for index, (first, second) in enumerate(zip(cold, warm, strict=True), 1):
        moved_mib = second.loaded_tokens * kv_bytes_per_token() / (1 << 20)
        loaded = f"{second.loaded_tokens} ({moved_mib:.0f} MiB)"
        same = "yes" if first.tokens == second.tokens else "NO"
        print(
            f"{index:>6}   {first.computed_tokens:>8}   {first.ttft_s:>11.2f} s   {second.computed_tokens:>10}   "
            f"{loaded:>13}   {second.ttft_s:>10.2f} s   {same:>8}"
        )
    print(flush=True)


def loaded_share(answers: list[Answer]) -> float:
    loaded = sum(answer.loaded_tokens for answer in answers)
    return loaded / max(1, sum(answer.loaded_tokens + answer.computed_tokens for answer in answers))


def verdict(cold: list[Answer], warm: list[Answer], control: list[Answer]) -> list[str]:
    """What went wrong; empty if nothing did."""
    faults = []
    if any(answer.loaded_tokens for answer in cold):
        faults.append("the first engine loaded tokens from an empty slab")
    if any(answer.loaded_tokens == 0 for answer in warm):
        faults.append("the new engine computed a prompt that it should have loaded")
    if any(first.tokens != second.tokens for first, second in zip(cold, warm, strict=True)):
        faults.append("tokens differ between the engines")
    for claimed, first in zip(control, cold, strict=False):
        if claimed.loaded_tokens == 0:
            faults.append("the control claimed no hit, so it shows nothing")
        elif claimed.tokens == first.tokens:
            faults.append("the control gave the right tokens without the loaded bytes")
    return faults


if __name__ == "__main__":
    sys.exit(main())
