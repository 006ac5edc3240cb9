"""Which vLLM is refused, and what the refusal says."""

import pytest
from aibrix_connector import versions
from aibrix_connector.versions import UnsupportedVllmError


@pytest.mark.parametrize("version", ["0.29.0", "0.30.1", "0.31.0", "0.32.0+cpu", "0.33.0rc1", "0.33.9"])
def test_supported(version: str) -> None:
    versions.check(version, allow_untested=False)


@pytest.mark.parametrize("version", ["0.28.1", "0.9.2", "0.10.2"])
@pytest.mark.parametrize("allow_untested", [False, True])
def test_too_old(version: str, allow_untested: bool) -> None:
    with pytest.raises(UnsupportedVllmError) as caught:
        versions.check(version, allow_untested)
    assert str(caught.value) == (
        f"vLLM {version} is too old for this connector, which supports 0.29 to 0.33: upgrade vLLM"
    )


@pytest.mark.parametrize("version", ["0.34.0", "1.0.0"])
def test_too_new_unless_allowed(version: str) -> None:
    with pytest.raises(UnsupportedVllmError) as caught:
        versions.check(version, allow_untested=False)
    assert str(caught.value) == (
        f"vLLM {version} is newer than what this connector was tested with (0.29 to 0.33): upgrade "
        'aibrix-connector, or set "allow_untested_vllm": true in kv_connector_extra_config at your own risk'
    )
    versions.check(version, allow_untested=True)


@pytest.mark.parametrize("version", ["", "dev", "0", "x.y", "main+abc"])
def test_garbage(version: str) -> None:
    with pytest.raises(UnsupportedVllmError) as caught:
        versions.check(version, allow_untested=True)
    assert str(caught.value) == (f"cannot read the vLLM version {version!r}: install a release between 0.29 and 0.33")
