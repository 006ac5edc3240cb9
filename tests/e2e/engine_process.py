"""An engine in a process of its own, driven by JSON lines; the part inside that process.

Reads one request per line on standard input: `{"call": NAME, ...arguments}`. Answers with one line per request on
standard output, `{"result": ...}` or `{"error": ...}`; whatever else the process prints goes to standard error.
The first line is the answer to nothing: `{"result": {"seconds": ...}}` when the engine is ready.

Usage: python -m tests.e2e.engine_process OPTIONS_JSON     (started by `tests.e2e.engine_client`)
"""

import dataclasses
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any, TextIO


def main() -> None:
    started = time.monotonic()
    # vLLM and its children print to descriptor 1; the answers get a descriptor that only we know.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    from tests.e2e.engine import Engine
    from tests.e2e.options import EngineOptions

    engine = Engine(EngineOptions(**json.loads(sys.argv[1])))
    _answer(answers, {"result": {"seconds": time.monotonic() - started, "pid": os.getpid()}})
    for line in sys.stdin:
        request = json.loads(line)
        call = request.pop("call")
        if call == "shutdown":
            break
        try:
            _answer(answers, {"result": _serve(engine, call, request)})
        except Exception:
            _answer(answers, {"error": traceback.format_exc()})
    engine.shutdown()
    _answer(answers, {"result": None})


def _serve(engine: Any, call: str, arguments: dict[str, Any]) -> Any:
    match call:
        case "generate":
            if arguments.get("lora"):
                arguments["lora"] = Path(arguments["lora"])
            return [dataclasses.asdict(c) for c in engine.generate(arguments.pop("prompts"), **arguments)]
        case "metrics" | "reset_prefix_cache" | "overwrite_kv" | "forget" | "kv_cache_groups":
            return getattr(engine, call)(**arguments)
        case _:
            raise ValueError(f"unknown call {call}")


def _answer(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
