"""Whatever makes the bytes of a block different gives another namespace."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aibrix_connector import identity
from aibrix_connector.adapters import Adapters
from aibrix_connector.kv_groups import Group
from aibrix_connector.settings import Settings

from tests.unit.fakes import fake_vllm, vllm_config

GROUPS = [Group(0, "full", 16, 0, 4096)]

CONFIG_CHANGES: dict[str, Any] = {
    "model_config__model": "org/other",
    "model_config__revision": "v2",
    "model_config__hf_config": SimpleNamespace(to_dict=lambda: {"hidden_size": 64, "rope_theta": 5e5}),
    "model_config__hf_overrides": {"rope_scaling": {"factor": 2}},
    "model_config__quantization": "fp8",
    "model_config__dtype": "torch.float16",
    "cache_config__cache_dtype": "fp8",
    "cache_config__prefix_caching_hash_algo": "sha256_cbor",
    "parallel_config__tensor_parallel_size": 2,
    "parallel_config__pipeline_parallel_size": 2,
    "parallel_config__decode_context_parallel_size": 2,
    "parallel_config__prefill_context_parallel_size": 2,
    "load_config__load_format": "dummy",
    "speculative_config": SimpleNamespace(method="eagle", model="draft", num_speculative_tokens=2),
}
SETTING_CHANGES: dict[str, Any] = {"salt": "tenant", "weights_digest": "abc", "key_source": "tokens"}
GROUP_CHANGES = {
    "kind": Group(0, "sliding", 16, 128, 4096),
    "block_tokens": Group(0, "full", 32, 0, 4096),
    "window": Group(0, "sliding", 16, 256, 4096),
}


def fingerprint(config: Any, groups: list[Group] = GROUPS, slot_blocks: int = 4, **settings: Any) -> bytes:
    return identity.namespace(identity.namespace_fields(config, groups, slot_blocks, Settings(**settings)))


def test_every_change_gives_another_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_vllm(monkeypatch)
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    seen = {fingerprint(vllm_config()): "nothing"}
    assert fingerprint(vllm_config()) in seen, "the same configuration gives the same namespace"

    def check(name: str, value: bytes) -> None:
        assert value not in seen, f"{name} gives the namespace of {seen[value]}"
        seen[value] = name

    for name, changed in CONFIG_CHANGES.items():
        check(name, fingerprint(vllm_config(**{name: changed})))
    check("dummy seed", fingerprint(vllm_config(load_config__load_format="dummy", model_config__seed=1)))
    for name, changed in SETTING_CHANGES.items():
        check(name, fingerprint(vllm_config(), **{name: changed}))
    check("hash", fingerprint(vllm_config(), key_source="tokens", hash="xxh3"))
    for name, group in GROUP_CHANGES.items():
        check(f"group {name}", fingerprint(vllm_config(), [group]))
    check("two groups", fingerprint(vllm_config(), [*GROUPS, GROUP_CHANGES["kind"]]))
    check("slot_blocks", fingerprint(vllm_config(), slot_blocks=8))
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    check("PYTHONHASHSEED", fingerprint(vllm_config()))
    fake_vllm(monkeypatch, "0.33.0")
    check("vllm", fingerprint(vllm_config()))


def test_every_field_of_the_namespace_is_covered_above(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new field needs a new line in the tables."""
    fake_vllm(monkeypatch)
    names = [name for name, _ in identity.namespace_fields(vllm_config(), GROUPS, 4, Settings())]
    assert names == [
        "model", "revision", "weights", "architecture", "overrides", "quantization", "dtype", "kv_dtype", "vllm",
        "hash", "tensor_parallel", "pipeline_parallel", "decode_context_parallel", "prefill_context_parallel",
        "speculative", "groups", "slot_blocks", "key_source", "salt",
    ]  # fmt: skip


def test_a_patch_release_of_vllm_keeps_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_vllm(monkeypatch, "0.32.0+cpu")
    before = fingerprint(vllm_config())
    fake_vllm(monkeypatch, "0.32.1")
    assert fingerprint(vllm_config()) == before


def write_weights(folder: Path, header: bytes = b'{"a":1}', data: bytes = b"x" * 64) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    os.utime(path, ns=(10**18, 10**18))
    return path


def test_weights_are_named_by_header_size_and_time(tmp_path: Path) -> None:
    write_weights(tmp_path)
    first = identity.directory_identity(tmp_path)
    assert first is not None
    assert identity.directory_identity(tmp_path) == first
    seen = {first}
    for change in (
        lambda: write_weights(tmp_path, header=b'{"a":2}'),
        lambda: write_weights(tmp_path, data=b"x" * 65),
        lambda: os.utime(write_weights(tmp_path), ns=(10**18, 10**18 + 1)),
        lambda: (write_weights(tmp_path), (tmp_path / "more.bin").write_bytes(b"y")),
    ):
        change()
        found = identity.directory_identity(tmp_path)
        assert found not in seen
        seen.add(found or "")
    (tmp_path / "more.bin").unlink()
    write_weights(tmp_path)
    (tmp_path / "README.md").write_text("no weights")
    assert identity.directory_identity(tmp_path) == first


def test_weights_of_a_model_folder_a_file_and_a_digest(tmp_path: Path) -> None:
    path = write_weights(tmp_path)
    of_folder = identity.weights_identity(vllm_config(model_config__model=str(tmp_path)), Settings())
    assert of_folder == identity.directory_identity(tmp_path)
    assert identity.weights_identity(vllm_config(model_config__model=str(path)), Settings()) == of_folder
    digest = Settings(weights_digest="d")
    assert identity.weights_identity(vllm_config(model_config__model=str(tmp_path)), digest) == "digest:d"


def test_weights_that_nobody_can_name(tmp_path: Path) -> None:
    assert identity.weights_identity(vllm_config(model_config__model=str(tmp_path)), Settings()) is None
    assert identity.weights_identity(vllm_config(model_config__model="no/such-model"), Settings()) is None


@pytest.mark.parametrize(
    ("algorithm", "seed", "stable"),
    [("sha256", None, True), ("sha256_cbor", None, True), ("xxhash", None, False), ("xxhash", "0", True)],
)
def test_stable_hashes(monkeypatch: pytest.MonkeyPatch, algorithm: str, seed: str | None, stable: bool) -> None:
    if seed is None:
        monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    else:
        monkeypatch.setenv("PYTHONHASHSEED", seed)
    assert identity.hashes_are_stable(vllm_config(cache_config__prefix_caching_hash_algo=algorithm)) is stable


def lora(path: Path, name: str = "sql", number: int = 1) -> Any:
    return SimpleNamespace(lora_name=name, lora_int_id=number, lora_path=str(path))


def test_adapters_are_named_by_path_and_content(tmp_path: Path) -> None:
    write_weights(tmp_path / "a")
    write_weights(tmp_path / "b", data=b"other")
    adapters = Adapters()
    assert adapters.identity(None) == b""
    found = [adapters.identity(lora(tmp_path / folder)) for folder in ("a", "b", "missing")]
    assert all(one is not None and len(one) == 32 for one in found)
    assert len(set(found)) == 3
    assert adapters.identity(lora(tmp_path / "a")) == found[0]


def test_an_adapter_that_changes_while_the_engine_runs_is_left_alone(tmp_path: Path) -> None:
    """The engine may serve either content: only a new process knows."""
    write_weights(tmp_path / "a")
    adapters = Adapters()
    before = adapters.identity(lora(tmp_path / "a"))
    write_weights(tmp_path / "a", data=b"retrained")
    assert adapters.identity(lora(tmp_path / "a")) is None
    assert adapters.identity(lora(tmp_path / "a", number=2)) not in (None, before)
    assert Adapters().identity(lora(tmp_path / "a")) not in (None, before)


def test_weights_in_a_hub_cache_are_the_same_on_every_machine(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots"
    blobs.mkdir()
    snapshot.mkdir()
    (blobs / "0a1b").write_bytes(b"weights")
    link = snapshot / "model.bin"
    link.symlink_to(blobs / "0a1b")
    before = identity.file_identity(link)
    os.utime(blobs / "0a1b", (1, 1))
    assert identity.file_identity(link) == before
    assert not identity.is_of_this_machine([("weights", before)])
    plain = tmp_path / "model.bin"
    plain.write_bytes(b"weights")
    assert identity.is_of_this_machine([("weights", identity.file_identity(plain))])


def test_with_a_digest_the_place_of_the_weights_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_vllm(monkeypatch)
    settings = Settings(weights_digest="abc")

    def fields(place: str) -> list[tuple[str, str]]:
        config = vllm_config(
            model_config__model=place,
            model_config__hf_config=SimpleNamespace(to_dict=lambda: {"hidden_size": 64, "_name_or_path": place}),
        )
        return identity.namespace_fields(config, GROUPS, 1, settings)

    assert fields("/data/a") == fields("/mnt/b")
