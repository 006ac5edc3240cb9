"""Network namespaces joined by cables of their own: real networks that a test can break.

A namespace lives as long as a process in it does. Each is held by a process that ends when this one does, whatever
ends it, and what runs inside dies with it; with the last of them the kernel removes the namespace and its cables. So
there is nothing to clean up, and nothing of it is ever seen outside.
"""

import os
import shutil
import subprocess
from types import TracebackType
from typing import Self

TOOLS = ("ip", "nsenter", "setpriv", "unshare")


def unavailable() -> str | None:
    """Why namespaces cannot be made here, or None."""
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"no {', '.join(missing)}: install iproute2 and util-linux"
    if os.geteuid() != 0:
        return "only root can make network namespaces"
    # A cable as well: containers may be allowed the one and not the other.
    made = subprocess.run(
        ["unshare", "--net", "ip", "link", "add", "cable0", "type", "veth", "peer", "name", "cable1"],
        capture_output=True,
        text=True,
    )
    return f"network namespaces cannot be made here: {made.stderr.strip()}" if made.returncode else None


class Namespace:
    """A network namespace; a context manager that lets go of it."""

    def __init__(self) -> None:
        holder = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "cat"]
        self._holder = subprocess.Popen(holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        # What comes back went through a process that is in there already.
        self._holder.stdin.write(b"\n")
        self._holder.stdin.flush()
        assert self._holder.stdout.readline() == b"\n", "no namespace was made"
        self.within = (
            *("nsenter", f"--net=/proc/{self._holder.pid}/ns/net"),
            *("setpriv", "--pdeathsig", "KILL"),
        )
        """What goes before a command that is to run inside."""
        self.ip("link", "set", "lo", "up")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._holder.kill()
        self._holder.wait(10)
        for pipe in (self._holder.stdin, self._holder.stdout):
            if pipe is not None:
                pipe.close()

    @property
    def pid(self) -> int:
        """A process inside."""
        return self._holder.pid

    def ip(self, *arguments: str) -> None:
        """Runs `ip` inside.

        Raises:
            AssertionError: It failed; holds what it said.
        """
        said = subprocess.run([*self.within, "ip", *arguments], capture_output=True, text=True)
        assert said.returncode == 0, f"ip {' '.join(arguments)}: {said.stderr.strip()}"


class Cable:
    """A cable from a client's namespace to one of a server, each end with an address."""

    def __init__(self, number: int, client: Namespace, server: Namespace) -> None:
        self.client, self.server = client, server
        self.client_link, self.server_link = f"server{number}", "client"
        # A range that is set aside for measurements of networks (RFC 2544).
        self.client_address, self.server_address = f"198.18.{number}.1", f"198.18.{number}.2"
        ends = ["name", self.client_link, "type", "veth", "peer", "name", self.server_link]
        client.ip("link", "add", *ends, "netns", str(server.pid))
        for namespace, link, address in [
            (client, self.client_link, self.client_address),
            (server, self.server_link, self.server_address),
        ]:
            namespace.ip("address", "add", f"{address}/30", "dev", link)
            namespace.ip("link", "set", link, "up")

    def unplug(self) -> None:
        """Takes the link down at the server: what is sent is lost, and nobody is told."""
        self.server.ip("link", "set", self.server_link, "down")

    def plug_in(self) -> None:
        """Undoes it."""
        self.server.ip("link", "set", self.server_link, "up")

    def lose_answers(self) -> None:
        """Requests arrive, and every answer is lost: a partition in one direction."""
        self.server.ip("route", "add", "blackhole", f"{self.client_address}/32")

    def find_answers(self) -> None:
        """Undoes it."""
        self.server.ip("route", "delete", "blackhole", f"{self.client_address}/32")

    def lose_requests(self) -> None:
        """The client's system knows no way to the server any more."""
        self.client.ip("route", "add", "blackhole", f"{self.server_address}/32")

    def find_requests(self) -> None:
        """Undoes it."""
        self.client.ip("route", "delete", "blackhole", f"{self.server_address}/32")
