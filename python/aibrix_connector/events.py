"""KV events in vLLM's own format, so that routers see what L1 holds."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_events import BlockRemoved, BlockStored, KVCacheEvent
from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash

from aibrix_connector.kv_groups import Group

if TYPE_CHECKING:
    from vllm.v1.request import Request

MEDIUM = "CPU"


@dataclass
class _Stored:
    """What an event says of one slot, kept until its job has ended."""

    block_hash: Any
    parent: Any
    tokens: list[int]
    lora_name: str | None
    group_id: int


class EventLog:
    """Turns jobs into events: a slot is one block of the event, named by the engine's hash of its last block."""

    def __init__(self, groups: list[Group], slot_blocks: int, hash_tokens: int) -> None:
        self._groups = groups
        self._slot_blocks = slot_blocks
        self._hash_tokens = hash_tokens
        self._pending: dict[int, list[_Stored]] = {}
        self._events: list[KVCacheEvent] = []

    def offload_began(self, job: int, request: "Request", slots: list[tuple[int, int]]) -> None:
        """Remembers what the slots of a job hold. Slots are (group, index within the request)."""
        self._pending[job] = [self._describe(request, group, index) for group, index in slots]

    def _describe(self, request: "Request", position: int, index: int) -> _Stored:
        group = self._groups[position]
        slot_tokens = group.block_tokens * self._slot_blocks
        hashes = request.block_hashes
        unit = self._hash_tokens
        first, last = index * slot_tokens, (index + 1) * slot_tokens
        parent = hashes[first // unit - 1] if first else None
        lora = request.lora_request.lora_name if request.lora_request else None
        return _Stored(hashes[last // unit - 1], parent, list(request.all_token_ids[first:last]), lora, group.group_id)

    def offload_ended(self, job: int, stored: list[int]) -> None:
        """The slots at the positions in `stored` are hits now."""
        slots = self._pending.pop(job, [])
        for position in stored:
            slot = slots[position]
            self._events.append(
                BlockStored(
                    block_hashes=[maybe_convert_block_hash(slot.block_hash)],
                    parent_block_hash=None if slot.parent is None else maybe_convert_block_hash(slot.parent),
                    token_ids=slot.tokens,
                    block_size=len(slot.tokens),
                    lora_id=None,
                    medium=MEDIUM,
                    lora_name=slot.lora_name,
                    group_idx=slot.group_id,
                )
            )

    def removed(self, hashes: list[bytes]) -> None:
        """Slots have left; `hashes` are the engine's. Called where it happens, so that events keep their order."""
        if hashes:
            converted: list[Any] = [maybe_convert_block_hash(block_hash) for block_hash in hashes]
            self._events.append(BlockRemoved(block_hashes=converted, medium=MEDIUM))

    def take(self) -> list[KVCacheEvent]:
        """Returns the events since the last call."""
        events, self._events = self._events, []
        return events
