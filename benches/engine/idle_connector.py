"""A connector that does nothing at all: what vLLM itself does in each step for having one."""

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorMetadata, SupportsHMA

NOTHING = KVConnectorMetadata()


class IdleConnector(KVConnectorBase_V1, SupportsHMA):
    """Every hook is there, and empty."""

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """Finds nothing."""
        return 0, False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Has nothing to start."""

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        """Returns a step without work."""
        return NOTHING

    def request_finished_all_groups(self, request: Any, block_ids: Any) -> tuple[bool, dict[str, Any] | None]:
        """Keeps nothing."""
        return False, None

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Loads nothing."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Has nothing to wait for."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """Stores nothing."""

    def wait_for_save(self) -> None:
        """Has nothing to wait for."""
