"""Every variable of AIBrix 0.8.0 is mapped, has no effect, or is refused with a reason."""

import pytest
from aibrix_connector import aibrix_env
from aibrix_connector.aibrix_env import PREFIX, TABLE, AibrixVariableError, Mapped, NoEffect, Part, Refused, translate

# Their names and what each is for us; with a value that AIBrix takes.
MAPPED = {
    "L1_CACHE_CAPACITY_GB": ("10", {"capacity": 10 << 30}),
    "L1_CACHE_EVICTION_POLICY": ("S3FIFO", {"eviction": "default"}),
    "L1_CACHE_ENABLED": ("1", {}),
    "L2_CACHE_NAMESPACE": ("aibrix", {"salt": "aibrix"}),
    "L2_CACHE_INGESTION_TYPE": ("HOT", {"remote_ingestion": "hot"}),
}
PARTS = [
    "L2_CACHE_BACKEND",
    "META_SERVICE_BACKEND",
    "META_SERVICE_URL",
    "META_SERVICE_CLUSTER_META_KEY",
    "INFINISTORE_HOST_ADDR",
    "INFINISTORE_SERVICE_PORT",
    "INFINISTORE_CONNECTION_TYPE",
]
REFUSED = {
    "DEVICE": "cuda",
    "L2_CACHE_COMPRESSION": "zstd",
    "PROFILING_ENABLED": "1",
}
NO_EFFECT = [
    "BLOCK_SIZE",
    "CHUNK_SIZE",
    "MAX_SEQ_LEN",
    "DOUBLE_GET_THRESHOLD",
    "TIME_MEASUREMENT_ENABLED",
    "BREAKDOWN_MEASUREMENT_ENABLED",
    "TOKEN_VALIDATION_ENABLED",
    "S3FIFO_SMALL_TO_MAIN_PROMO_THRESHOLD",
    "S3FIFO_SMALL_FIFO_CAPACITY_RATIO",
    "L2_CACHE_OP_BATCH",
    "L2_CACHE_PER_TOKEN_TIMEOUT_MS",
    "L2_CACHE_PLACEMENT_POLICY",
    "L2_CACHE_KEY_BUILDER",
    "L2_CACHE_INGESTION_MAX_INFLIGHT_TOKENS",
    "L2_CACHE_NUM_ASYNC_WORKERS",
    "META_SERVICE_REFRESH_INTERVAL_S",
    "TRANSPORT_RDMA_ADDR_RANGE",
    "MOCK_USE_RDMA",
    "MOCK_USE_MPUT_MGET",
    "MOCK_USE_GDR_PUT",
    "MOCK_USE_GDR_GET",
    "MOCK_USE_NOOP",
    "EIC_CONFIG_FILE",
    "ROCKSDB_ROOT",
    "ROCKSDB_TTL_S",
    "ROCKSDB_WRITE_BUFFER_SIZE",
    "ROCKSDB_TARGET_FILE_SIZE_BASE",
    "ROCKSDB_MAX_WRITE_BUFFER_NUMBER",
    "ROCKSDB_MAX_TOTAL_WAL_SIZE",
    "ROCKSDB_MAX_BACKGROUND_JOBS",
    "SHFS_ROOT",
    "INFINISTORE_IB_PORT",
    "INFINISTORE_LINK_TYPE",
    "INFINISTORE_VISIBLE_DEV_LIST",
    "INFINISTORE_USE_GDR",
    "HPKV_USE_GDR",
    "HPKV_REMOTE_ADDR",
    "HPKV_REMOTE_PORT",
    "HPKV_LOCAL_ADDR",
    "HPKV_LOCAL_PORT",
    "PRISKV_REMOTE_ADDR",
    "PRISKV_REMOTE_PORT",
    "PRISKV_PASSWORD",
    "PRISKV_USE_MPUT_MGET",
    "PRISKV_USE_ZERO_COPY",
    "PRIS_REMOTE_ADDR",
    "PRIS_REMOTE_PORT",
    "PRIS_PASSWORD",
    "PRIS_USE_MPUT_MGET",
    "PRIS_USE_ZERO_COPY",
    "PROFILING_SERVER_ADDRESS",
]


def test_the_table_is_complete() -> None:
    assert set(TABLE) == {*MAPPED, *PARTS, *REFUSED, *NO_EFFECT}
    assert len(TABLE) == len(MAPPED) + len(PARTS) + len(REFUSED) + len(NO_EFFECT)


@pytest.mark.parametrize(
    ("variables", "remote"),
    [
        ({"L2_CACHE_BACKEND": "INFINISTORE"}, "infinistore+rdma://127.0.0.1:12345"),
        (
            {
                "L2_CACHE_BACKEND": "infinistore",
                "INFINISTORE_CONNECTION_TYPE": "TCP",
                "INFINISTORE_HOST_ADDR": "10.0.0.7",
                "INFINISTORE_SERVICE_PORT": "22345",
            },
            "tcp://10.0.0.7:22345",
        ),
        (
            {
                "L2_CACHE_BACKEND": "INFINISTORE",
                "META_SERVICE_BACKEND": "REDIS",
                "META_SERVICE_URL": "redis://meta:6379/",
                "META_SERVICE_CLUSTER_META_KEY": "kvcache_nodes",
            },
            "redis://meta:6379/kvcache_nodes",
        ),
        ({"INFINISTORE_HOST_ADDR": "10.0.0.7", "META_SERVICE_URL": "redis://meta"}, None),
        ({"L2_CACHE_BACKEND": ""}, None),
    ],
)
def test_variables_that_together_say_where_l2_is(variables: dict[str, str], remote: str | None) -> None:
    settings, remarks = translate({PREFIX + name: value for name, value in variables.items()})
    assert (settings, remarks) == ({} if remote is None else {"remote": remote}, [])
    assert all(isinstance(TABLE[name], Part) for name in variables)


@pytest.mark.parametrize("name", MAPPED)
def test_mapped(name: str) -> None:
    value, expected = MAPPED[name]
    assert isinstance(TABLE[name], Mapped)
    assert translate({PREFIX + name: value}) == (expected, [])


@pytest.mark.parametrize("name", NO_EFFECT)
def test_no_effect_is_said(name: str) -> None:
    entry = TABLE[name]
    assert isinstance(entry, NoEffect)
    assert entry.reason
    shown = f"{PREFIX}{name}" if "PASSWORD" in name else f"{PREFIX}{name}=5"
    assert translate({PREFIX + name: "5"}) == ({}, [f"{shown} has no effect: {entry.reason}"])


def test_a_password_is_not_logged() -> None:
    for name in ("PRISKV_PASSWORD", "PRIS_PASSWORD"):
        _, remarks = translate({PREFIX + name: "hunter2"})
        assert remarks == [f"{PREFIX}{name} has no effect: {TABLE[name].reason}"]  # type: ignore[union-attr]


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_reason_unless_off(name: str) -> None:
    entry = TABLE[name]
    assert isinstance(entry, Refused)
    with pytest.raises(AibrixVariableError) as caught:
        translate({PREFIX + name: REFUSED[name]})
    assert str(caught.value) == (f"environment variable {PREFIX}{name}={REFUSED[name]!r} is refused: {entry.reason}")
    for off in entry.off_values:
        assert translate({PREFIX + name: off}) == ({}, [])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "L1_CACHE_EVICTION_POLICY",
            "FIFO",
            "environment variable AIBRIX_KV_CACHE_OL_L1_CACHE_EVICTION_POLICY='FIFO' is refused: use S3FIFO or LRU",
        ),
        (
            "L1_CACHE_ENABLED",
            "0",
            "environment variable AIBRIX_KV_CACHE_OL_L1_CACHE_ENABLED='0' is refused: L1 is what this connector is: "
            "remove the connector to switch it off",
        ),
        (
            "L1_CACHE_CAPACITY_GB",
            "ten",
            "environment variable AIBRIX_KV_CACHE_OL_L1_CACHE_CAPACITY_GB='ten' is refused: give a number of GiB "
            "above 0",
        ),
        (
            "L1_CACHE_CAPACITY_GB",
            "inf",
            "environment variable AIBRIX_KV_CACHE_OL_L1_CACHE_CAPACITY_GB='inf' is refused: give a number of GiB "
            "above 0",
        ),
        (
            "L1_CACHE_CAPACTY_GB",
            "1",
            "environment variable AIBRIX_KV_CACHE_OL_L1_CACHE_CAPACTY_GB='1' is not known: unset it, or set what you "
            "mean in kv_connector_extra_config (see docs/settings.md); did you mean "
            "AIBRIX_KV_CACHE_OL_L1_CACHE_CAPACITY_GB?",
        ),
        (
            "L2_CACHE_BACKEND",
            "PRISKV",
            "environment variable AIBRIX_KV_CACHE_OL_L2_CACHE_BACKEND='PRISKV' is refused: use INFINISTORE, whose "
            "protocol L2 speaks, or unset it to run with L1 alone",
        ),
        (
            "ZZ",
            "1",
            "environment variable AIBRIX_KV_CACHE_OL_ZZ='1' is not known: unset it, or set what you mean in "
            "kv_connector_extra_config (see docs/settings.md)",
        ),
    ],
)
def test_golden_errors(name: str, value: str, message: str) -> None:
    with pytest.raises(AibrixVariableError) as caught:
        translate({PREFIX + name: value})
    assert str(caught.value) == message


def test_other_variables_are_left_alone() -> None:
    assert translate({"PATH": "/bin", "VLLM_AIBRIX_SYNC_GRANULARITY": "NONE"})[0] == {}


def test_the_name_without_prefix_is_said_to_have_no_effect() -> None:
    _, remarks = translate({"VLLM_AIBRIX_SYNC_GRANULARITY": "PER_OP"})
    assert remarks == [
        "VLLM_AIBRIX_SYNC_GRANULARITY=PER_OP has no effect: one decision is made for all ranks, so there is nothing to "
        "agree on"
    ]


def test_reference_has_a_row_for_each() -> None:
    table = aibrix_env.reference()
    for name in TABLE:
        assert table.count(f"| `{name}` |") == 1
