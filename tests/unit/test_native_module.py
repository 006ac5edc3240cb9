"""What the native module asks of a machine before it can be imported."""

import re
import subprocess
from pathlib import Path

from aibrix_connector import _native

# The C library with its parts, and the compiler's run-time library: what every Linux with Python has.
SYSTEM = re.compile(r"(libc|libm|libdl|librt|libpthread|libgcc_s|ld-linux-[a-z0-9-]+)\.so\.\d+")


def test_it_links_the_system_only() -> None:
    # Neither CUDA nor torch nor libibverbs: what a machine has of these is opened at run time.
    path = Path(_native.__file__)
    lines = subprocess.run(["readelf", "-dW", str(path)], capture_output=True, text=True, check=True).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.+?)\]", lines)
    assert "libc.so.6" in needed
    assert [name for name in needed if not SYSTEM.fullmatch(name)] == []
