"""The C library, installed once a test run, as a user's package manager would."""

import pytest

from tests.capi.installed import Installed, install


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """An installed tree."""
    return install(tmp_path_factory.mktemp("capi"))
