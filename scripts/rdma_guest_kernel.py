"""Takes apart an unpacked Debian kernel package: the kernel as ELF, and modules in the order of loading.

    rdma_guest_kernel.py PACKAGE_ROOT VMLINUX MODULES_FOLDER LIST=MODULE,MODULE,...

Each list becomes a file of that name in the folder.

Written out rather than called from kmod and the kernel's extract-vmlinux: both would be one more thing to install.
"""

import lzma
import shutil
import sys
from pathlib import Path


def elf_of(image: bytes) -> bytes:
    """Decompress the ELF kernel inside of a bzImage.

    Args:
        image: The whole file. Debian compresses the kernel with xz.

    Raises:
        ValueError: No xz stream in it holds an ELF file.
    """
    start = image.find(b"\xfd7zXZ\x00")
    while start >= 0:
        try:
            kernel = lzma.LZMADecompressor(format=lzma.FORMAT_XZ).decompress(image[start:])
        except lzma.LZMAError:
            kernel = b""
        if kernel.startswith(b"\x7fELF"):
            return kernel
        start = image.find(b"\xfd7zXZ\x00", start + 1)
    raise ValueError("no ELF kernel, compressed with xz, in the image")


def needed_names(module: bytes) -> list[str]:
    """Read which modules a module depends on from its `depends=` entry (section .modinfo, NUL-terminated texts)."""
    at = module.find(b"\x00depends=")
    text = module[at + 9 : module.index(b"\x00", at + 9)].decode() if at >= 0 else ""
    return [name for name in text.split(",") if name]


def loading_order(modules: dict[str, Path], wanted: list[str]) -> list[Path]:
    """Order the wanted modules and all that they depend on, dependencies first.

    Raises:
        KeyError: A module is not in the package (it may be built into the kernel under another name).
    """
    order: list[Path] = []

    def add(name: str) -> None:
        path = modules[name.replace("-", "_")]
        if path not in order:
            for needed in needed_names(path.read_bytes()):
                add(needed)
            order.append(path)

    for name in wanted:
        add(name)
    return order


def main(root: Path, vmlinux: Path, folder: Path, lists: list[str]) -> None:
    """Write the kernel, the modules and their lists."""
    (image,) = (root / "boot").glob("vmlinuz-*")
    vmlinux.write_bytes(elf_of(image.read_bytes()))
    modules = {path.stem.replace("-", "_"): path for path in root.rglob("*.ko")}
    for entry in lists:
        name, _, wanted = entry.partition("=")
        order = loading_order(modules, wanted.split(","))
        for path in order:
            shutil.copy(path, folder / path.name)
        (folder / name).write_text("".join(f"{path.name}\n" for path in order))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
