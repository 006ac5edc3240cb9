"""What several of these tests need."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def slab_folder() -> Iterator[Path]:
    """A folder in shared memory, where slabs belong."""
    with tempfile.TemporaryDirectory(prefix="kvcache-test-", dir="/dev/shm") as folder:
        yield Path(folder)
