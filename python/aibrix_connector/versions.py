"""Which vLLM this connector works with."""

OLDEST = (0, 29)
NEWEST_TESTED = (0, 33)


class UnsupportedVllmError(ImportError):
    """The installed vLLM is outside of the supported range."""


def parse(version: str) -> tuple[int, int]:
    """Returns (major, minor) of a version such as ``0.32.0+cpu``.

    Raises:
        UnsupportedVllmError: If it does not start with two numbers.
    """
    numbers = version.split("+")[0].split(".")
    try:
        return int(numbers[0]), int(numbers[1])
    except (IndexError, ValueError):
        raise UnsupportedVllmError(
            f"cannot read the vLLM version {version!r}: install a release between "
            f"{OLDEST[0]}.{OLDEST[1]} and {NEWEST_TESTED[0]}.{NEWEST_TESTED[1]}"
        ) from None


def check(version: str, allow_untested: bool) -> None:
    """Refuses a vLLM that is too old, or newer than what was tested.

    Args:
        version: ``vllm.__version__``.
        allow_untested: The setting ``allow_untested_vllm``.

    Raises:
        UnsupportedVllmError: Names the version and the remedy.
    """
    found = parse(version)
    supported = f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST_TESTED[0]}.{NEWEST_TESTED[1]}"
    if found < OLDEST:
        raise UnsupportedVllmError(
            f"vLLM {version} is too old for this connector, which supports {supported}: upgrade vLLM"
        )
    if found > NEWEST_TESTED and not allow_untested:
        raise UnsupportedVllmError(
            f"vLLM {version} is newer than what this connector was tested with ({supported}): upgrade "
            'aibrix-connector, or set "allow_untested_vllm": true in kv_connector_extra_config at your own risk'
        )
