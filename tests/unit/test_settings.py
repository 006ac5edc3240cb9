"""Every setting: its default, values it takes, and the text of the error for one that it does not take."""

import dataclasses
import json
from typing import Any

import pytest
from aibrix_connector import settings
from aibrix_connector.aibrix_env import AibrixVariableError
from aibrix_connector.settings import SettingError, Settings

GIB = 1 << 30

# setting: (default, [(value given, value read)], [(bad value, what the error says it is not)])
CASES: dict[str, tuple[Any, list[tuple[Any, Any]], list[tuple[Any, str]]]] = {
    "capacity": (
        None,
        [("8GiB", 8 * GIB), ("auto", None), ("1.5 gb", 1_500_000_000), (4096, 4096), ("64m", 64 << 20), (None, None)],
        [(value, 'a size such as "8GiB", or "auto"') for value in ("8 bananas", "-1", "", True, [1], "1e3", "GiB", -5)],
    ),
    "slab_dir": (None, [("/dev/shm", "/dev/shm"), ("", None)], []),
    "eviction": ("default", [("lru", "lru")], []),
    "slot_blocks": (
        None,
        [(1, 1), ("4096", 4096), ("AUTO", None)],
        [(value, 'a whole number from 1 to 4096, or "auto"') for value in (0, 4097, 1.5, True, "many")],
    ),
    "load_mode": (
        "auto",
        [("layerwise", "layerwise"), ("async", "async")],
        [("sync", "auto, layerwise or async")],
    ),
    "min_load_tokens": (
        1,
        [("64", 64)],
        [
            (0, "a number of tokens from 1 up"),
            ("x", "a number of tokens from 1 up"),
            (None, "a number of tokens from 1 up"),
        ],
    ),
    "fill_wait_ms": (
        200.0,
        [(0, 0.0), ("12.5", 12.5)],
        [(-1, "milliseconds from 0 to 60000"), ("nan", "milliseconds from 0 to 60000")],
    ),
    "startup_wait_ms": (
        2000.0,
        [(60_000, 60_000.0)],
        [(60_001, "milliseconds from 0 to 60000"), ("soon", "milliseconds from 0 to 60000")],
    ),
    "store_on_sight": (1, [(2, 2)], [(0, "a whole number from 1 to 255"), (256, "a whole number from 1 to 255")]),
    "prompt_only": (
        False,
        [("yes", True), (True, True), ("0", False)],
        [("maybe", "true or false"), (2, "true or false")],
    ),
    "key_source": ("engine", [("tokens", "tokens")], [("engines", "engine or tokens")]),
    "hash": ("blake3", [("xxh3", "xxh3")], [("md5", "blake3 or xxh3")]),
    "salt": ("", [("team a", "team a"), (7, "7")], []),
    "weights_digest": (None, [("sha256:12", "sha256:12"), ("", None)], []),
    "copy_threads": (None, [(0, 0), ("auto", None)], [(65, 'a whole number from 0 to 64, or "auto"')]),
    "layers_ahead": (
        8,
        [(0, 0)],
        [(-1, "a number of layers from 0 to 1024"), (1025, "a number of layers from 0 to 1024")],
    ),
    "copy_path": (
        "auto",
        [("dma_batch", "dma_batch"), ("dma", "dma"), ("kernel", "kernel")],
        [("sm", "auto, dma_batch, dma or kernel")],
    ),
    "kv_layout": (
        "auto",
        [("BLHNC", "BLHNC")],
        [(word, "auto or LBHNC, LBNHC, LHBNC, BLHNC, BLNHC, BHLNC") for word in ("NHD", "blhnc")],
    ),
    "verify_l1": (False, [("on", True)], [("", "true or false")]),
    "remote": (None, [("tcp://a:1,b:1", "tcp://a:1,b:1"), ("", None)], []),
    "remote_ingestion": ("all", [("hot", "hot"), ("evicted", "evicted")], [("ALL", "all, hot or evicted")]),
    "remote_replicas": (1, [(4, 4)], [(0, "a whole number from 1 to 4"), (5, "a whole number from 1 to 4")]),
    "remote_token_file": (None, [("/etc/token", "/etc/token"), ("", None)], []),
    "remote_tls_ca": (None, [("/etc/ca.pem", "/etc/ca.pem"), ("", None)], []),
    "remote_tls_name": (None, [("cache", "cache"), ("", None)], []),
    "remote_shared_memory": (True, [("off", False), (0, False)], [("sometimes", "true or false")]),
    "remote_timeout_ms": (
        2000.0,
        [(1, 1.0)],
        [(0, "milliseconds from 1 to 60000"), (60_001, "milliseconds from 1 to 60000")],
    ),
    "remote_wait_ms": (2000.0, [(0, 0.0)], [(-1, "milliseconds from 0 to 60000")]),
    "remote_presence_wait_ms": (50.0, [(0, 0.0)], [("soon", "milliseconds from 0 to 60000")]),
    "remote_in_flight": (32, [(1, 1)], [(0, "a whole number from 1 to 4096"), (4097, "a whole number from 1 to 4096")]),
    "piecewise_cudagraph": (False, [("true", True)], [([], "true or false")]),
    "allow_untested_vllm": (False, [(1, True)], [("never", "true or false")]),
    "drill": (None, [("claim_hits_load_nothing", "claim_hits_load_nothing"), ("", None)], []),
}


def read(**values: Any) -> Settings:
    return settings.read(values, {})[0]


def test_every_setting_has_a_case() -> None:
    assert set(CASES) == {field.name for field in dataclasses.fields(Settings)}


@pytest.mark.parametrize("name", CASES)
def test_default(name: str) -> None:
    assert getattr(read(), name) == CASES[name][0]


@pytest.mark.parametrize(
    ("name", "given", "expected"), [(name, *pair) for name, (_, good, _) in CASES.items() for pair in good]
)
def test_good_value(name: str, given: Any, expected: Any) -> None:
    value = getattr(read(**{name: given}), name)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("name", "given", "accepts"), [(name, *pair) for name, (_, _, bad) in CASES.items() for pair in bad]
)
def test_bad_value_names_setting_value_and_remedy(name: str, given: Any, accepts: str) -> None:
    with pytest.raises(SettingError) as caught:
        read(**{name: given})
    default = getattr(Settings(), name)
    expected = json.dumps(default) if default is not None else "auto" if "auto" in accepts else "none"
    assert str(caught.value) == (
        f"setting {name!r} has the value {given!r}, which is not {accepts}: correct it, or leave it out for the "
        f"default {expected}"
    )


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("capcity", "did you mean 'capacity'?"),
        ("capacity_gb", "did you mean 'capacity'?"),
        ("slabdir", "did you mean 'slab_dir'?"),
        ("slab_path", "did you mean 'slab_dir'?"),
        ("evict", "did you mean 'eviction'?"),
        ("load-mode", "did you mean 'load_mode'?"),
        ("zzz", "known settings are " + ", ".join(sorted(CASES))),
    ],
)
def test_unknown_setting_names_the_nearest(wrong: str, hint: str) -> None:
    with pytest.raises(SettingError) as caught:
        read(**{wrong: 1})
    assert str(caught.value) == f"unknown setting {wrong!r} in kv_connector_extra_config: {hint}"


def test_a_name_that_is_no_text_is_an_error_too() -> None:
    with pytest.raises(SettingError, match="unknown setting 5 in kv_connector_extra_config: known settings are"):
        settings.read({5: 1}, {})  # type: ignore[dict-item]


def test_extra_config_wins_over_the_environment() -> None:
    environ = {"AIBRIX_KV_CACHE_OL_L1_CACHE_CAPACITY_GB": "2", "AIBRIX_KV_CACHE_OL_L1_CACHE_EVICTION_POLICY": "LRU"}
    got, _ = settings.read({"capacity": "1GiB"}, environ)
    assert (got.capacity, got.eviction) == (GIB, "lru")


def test_errors_of_the_environment_name_the_variable() -> None:
    environ = {"AIBRIX_KV_CACHE_OL_L1_CACHE_CAPACITY_GB": "-1"}
    with pytest.raises(AibrixVariableError, match="AIBRIX_KV_CACHE_OL_L1_CACHE_CAPACITY_GB='-1' is refused"):
        settings.read({}, environ)


def test_reference_names_every_setting_once() -> None:
    table = settings.reference()
    for name in CASES:
        assert table.count(f"| `{name}` |") == 1


def test_a_password_is_not_logged() -> None:
    shown = read(remote="redis://user:hunter2@host:6379/0/kvcache_nodes").shown()
    assert shown.remote == "redis://…@host:6379/0/kvcache_nodes"
    assert "hunter2" not in str(shown)
    assert read().shown() == read()


def test_what_engines_share_needs_keys_that_resist() -> None:
    with pytest.raises(
        SettingError, match="blocks that engines share need keys that nobody can make collide: use blake3"
    ):
        read(remote="tcp://a:1", key_source="tokens", hash="xxh3")
    assert read(remote="tcp://a:1", key_source="tokens").remote_options() is not None
    assert read().remote_options() is None
