"""KV cache offloading: a block cache for any engine and a KV connector for vLLM.

``BlockCache`` needs nothing but NumPy. The connector classes need vLLM, and are imported when they are asked for, so
that importing this package stays cheap in processes that only want one of the two.
"""

from typing import TYPE_CHECKING, Any

from aibrix_connector._native import BlockCache, __version__

if TYPE_CHECKING:
    from aibrix_connector.connector import AIBrixOffloadingConnectorV1Type3, OffloadingConnectorV1Type3

__all__ = ["AIBrixOffloadingConnectorV1Type3", "BlockCache", "OffloadingConnectorV1Type3", "__version__"]

_CONNECTORS = ("AIBrixOffloadingConnectorV1Type3", "OffloadingConnectorV1Type3")


def __getattr__(name: str) -> Any:
    if name in _CONNECTORS:
        from aibrix_connector import connector

        return getattr(connector, name)
    raise AttributeError(f"module 'aibrix_connector' has no attribute {name!r}")
