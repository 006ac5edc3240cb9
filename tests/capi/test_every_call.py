"""No function crashes on nothing, on handles that were closed, or on strangers."""

import sys

from tests.capi.installed import ROOT, Installed, run


def test_every_call_with_bad_arguments(installed: Installed) -> None:
    header = installed.include / "kvcache.h"
    run([sys.executable, "-m", "tests.capi.every_call", str(installed.library), str(header)], cwd=ROOT)
