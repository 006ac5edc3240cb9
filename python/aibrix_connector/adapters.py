"""What names the content of LoRA adapters.

The engine hashes an adapter's name only, and the content behind a name can change: between two runs, or while an engine
that has loaded it goes on serving what it has loaded.
"""

import hashlib
from pathlib import Path
from typing import Protocol

from aibrix_connector.identity import directory_identity


class LoraRequest(Protocol):
    """What is needed of vLLM's ``LoRARequest``."""

    lora_name: str
    lora_int_id: int
    lora_path: str


class Adapters:
    """Identities of the adapters that requests named since the start of this process."""

    def __init__(self) -> None:
        self._first_seen: dict[tuple[str, int, str], bytes] = {}

    def identity(self, request: LoraRequest | None) -> bytes | None:
        """Returns what names the content of a request's adapter; empty without an adapter.

        Costs a look at the adapter's files.

        Returns:
            None if the files have changed since the first request: nobody here can know which content the engine has
            loaded, so that such a request must be neither stored nor loaded.
        """
        if request is None:
            return b""
        path = Path(request.lora_path)
        content = directory_identity(path) if path.is_dir() else None
        found = hashlib.sha256(f"{path}\n{content}".encode(errors="surrogateescape")).digest()
        name = (request.lora_name, request.lora_int_id, request.lora_path)
        return found if self._first_seen.setdefault(name, found) == found else None
