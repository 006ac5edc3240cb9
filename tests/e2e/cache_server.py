"""Cache servers of ours in processes of their own, as `kvcache serve` starts them."""

import functools
import json
import os
import signal
import subprocess
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 30.0


@functools.cache
def tool() -> Path:
    """Returns the tool `kvcache`: `KVCACHE_TOOL`, which `make` sets, or what is built now."""
    given = os.environ.get("KVCACHE_TOOL")
    if given:
        return Path(given)
    built = subprocess.run([ROOT / "scripts/build_cli.sh"], check=True, capture_output=True, text=True)
    return Path(built.stdout.strip())


class CacheServer:
    """A running server; a context manager that kills it."""

    def __init__(
        self,
        log: Path,
        *,
        capacity: str = "256MiB",
        host: str = "127.0.0.1",
        port: int = 0,
        flags: tuple[str, ...] = (),
        within: tuple[str, ...] = (),
    ) -> None:
        """Starts it and waits until it listens.

        Args:
            log: For its output.
            capacity: Memory for values.
            host: The address to listen on.
            port: The port; a free one if it is 0.
            flags: More of `kvcache serve`.
            within: A command that becomes the one that follows it, as `nsenter` does.
        """
        self.log = log
        listen = ["--listen", f"{host}:{port}", "--manage", "127.0.0.1:0"]
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [*within, tool(), "serve", *listen, "--capacity", capacity, *flags], stdout=output, stderr=output
            )
        ready = self._wait_until_ready()
        self.address, self.manage = ready["listen"], ready["manage"]

    def _wait_until_ready(self) -> dict[str, str]:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            for line in self.log.read_text(errors="replace").splitlines():
                if line.startswith('{"') and '"event":"ready"' in line and line.endswith("}"):
                    ready: dict[str, str] = json.loads(line)
                    return ready
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        self.kill()
        raise AssertionError(f"the cache server did not start:\n{self.log.read_text(errors='replace')[-2000:]}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def port(self) -> int:
        """The port for values."""
        return int(self.address.rsplit(":", 1)[1])

    def values(self) -> int:
        """Values that it holds."""
        with urllib.request.urlopen(f"http://{self.manage}/kvmap_len", timeout=10) as answer:
            return int(json.load(answer)["len"])

    def metrics(self) -> dict[str, float]:
        """What its `/metrics` says, summed over labels."""
        values: dict[str, float] = {}
        with urllib.request.urlopen(f"http://{self.manage}/metrics", timeout=10) as answer:
            for line in answer.read().decode().splitlines():
                if line and not line.startswith("#"):
                    name, value = line.rsplit(" ", 1)
                    name = name.split("{")[0]
                    values[name] = values.get(name, 0.0) + float(value)
        return values

    def stop(self) -> None:
        """Stops it without ending it: its connections stay open, and nothing is answered."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Lets a stopped one go on."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kills it, stopped or not."""
        self.process.kill()
        self.process.wait(10)
