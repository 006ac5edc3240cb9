"""`kv_transfer_params` come from users: whatever they send, the engine goes on."""

import random
from typing import Any

import pytest
from aibrix_connector import wishes
from aibrix_connector.wishes import Wishes


@pytest.mark.parametrize("params", [None, {}, {"kvcache": None}, {"kvcache": {}}, {"do_remote_decode": True}])
def test_nothing_asked(params: Any) -> None:
    assert wishes.read(params) == (Wishes(), {})


def test_everything_asked() -> None:
    asked = {"skip_load": True, "skip_store": False, "max_load_tokens": 0, "max_store_tokens": 128}
    assert wishes.read({"kvcache": asked}) == (Wishes(True, False, 0, 128), {})


@pytest.mark.parametrize(
    ("params", "remark"),
    [
        ([1], "kv_transfer_params is [1], not an object: it is ignored"),
        ({"kvcache": "off"}, "kv_transfer_params.kvcache is 'off', not an object: it is ignored"),
        (
            {"kvcache": {"skip_load": 1}},
            "kv_transfer_params.kvcache.skip_load is 1, not true or false: it is ignored",
        ),
        (
            {"kvcache": {"max_load_tokens": "64"}},
            "kv_transfer_params.kvcache.max_load_tokens is '64', not a number of tokens from 0 up: it is ignored",
        ),
        (
            {"kvcache": {"max_store_tokens": -1}},
            "kv_transfer_params.kvcache.max_store_tokens is -1, not a number of tokens from 0 up: it is ignored",
        ),
        (
            {"kvcache": {"max_store_tokens": True}},
            "kv_transfer_params.kvcache.max_store_tokens is True, not a number of tokens from 0 up: it is ignored",
        ),
        (
            {"kvcache": {"skip": True}},
            "kv_transfer_params.kvcache.skip is not known: it is ignored, known are skip_load, skip_store, "
            "max_load_tokens, max_store_tokens",
        ),
    ],
)
def test_what_is_wrong_is_named_and_left_out(params: Any, remark: str) -> None:
    assert wishes.read(params)[0] == Wishes()
    assert list(wishes.read(params)[1].values()) == [remark]


def test_the_rest_of_a_wrong_request_counts() -> None:
    got, remarks = wishes.read({"kvcache": {"skip_load": "yes", "max_store_tokens": 5}})
    assert got == Wishes(max_store_tokens=5)
    assert list(remarks) == ["skip_load"]


def test_huge_numbers_are_no_caps() -> None:
    assert wishes.read({"kvcache": {"max_load_tokens": 10**400}})[0] == Wishes()


def test_remarks_stay_short_on_one_line_and_few() -> None:
    ours = {"a\nb" * 500: 1, "skip_load": "x" * 10_000} | {str(n): n for n in range(1000)}
    _, remarks = wishes.read({"kvcache": ours})
    assert len(remarks) == 2
    assert all(len(remark) < 250 and "\n" not in remark for remark in remarks.values())


def test_anything_at_all_is_survived() -> None:
    generator = random.Random(1)
    leaves: list[Any] = [None, True, -1, 1.5, float("nan"), 10**30, "", "\ud800", "skip_load", b"x", ()]

    def anything(depth: int) -> Any:
        kind = generator.randrange(4) if depth else 0
        if kind == 1:
            return [anything(depth - 1) for _ in range(generator.randrange(4))]
        if kind >= 2:
            names = ["kvcache", "skip_load", "skip_store", "max_load_tokens", "max_store_tokens", "x", ""]
            return {generator.choice(names): anything(depth - 1) for _ in range(generator.randrange(5))}
        return generator.choice(leaves)

    for _ in range(5000):
        got, _ = wishes.read(anything(3))
        assert isinstance(got.skip_load, bool)
        assert got.max_load_tokens is None or 0 <= got.max_load_tokens <= wishes.MOST_TOKENS
