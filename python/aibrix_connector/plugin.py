"""The entry point of vLLM's ``vllm.general_plugins`` group: makes the connector known by its name."""


def register() -> None:
    """Registers the connector classes with vLLM's factory. Safe to call more than once; imports nothing heavy."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    known = getattr(KVConnectorFactory, "_registry", {})
    for name in ("AIBrixOffloadingConnectorV1Type3", "OffloadingConnectorV1Type3"):
        if name not in known:
            KVConnectorFactory.register_connector(name, "aibrix_connector.connector", name)
