"""Writes the generated parts of the documents: ``python -m aibrix_connector.reference [--check] [DOCS]``.

A generated part stands between two comments that name it; everything around it is written by hand.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from aibrix_connector import aibrix_env, settings


def _metrics() -> str:
    from aibrix_connector import metrics

    return metrics.reference()


PARTS: dict[str, tuple[str, Callable[[], str]]] = {
    "settings": ("settings.md", settings.reference),
    "metrics": ("metrics.md", _metrics),
    "environment": ("aibrix-migration.md", aibrix_env.reference),
}
"""What is generated: the document and its text. Metrics need vLLM."""


def updated(text: str, name: str, generated: str) -> str:
    """Returns a document with its generated part replaced.

    Raises:
        ValueError: The document has no place for the part.
    """
    begin, end = f"<!-- generated: {name} -->\n", f"<!-- end of {name} -->\n"
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise ValueError(f"no place for {name}: put {begin.strip()} and {end.strip()} on lines of their own")
    return f"{before}{begin}\n{generated}\n{end}{after}"


def main(arguments: list[str] | None = None) -> int:
    """Updates the documents, or with ``--check`` only says which are not current.

    Returns:
        1 if a checked document is not current, else 0.
    """
    parser = argparse.ArgumentParser(prog="python -m aibrix_connector.reference", description=main.__doc__)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit status 1 if a document is not current"
    )
    parser.add_argument("docs", nargs="?", type=Path, default=Path("docs"), help="folder of the documents")
    options = parser.parse_args(arguments)
    stale = 0
    for name, (document, make) in PARTS.items():
        path: Path = options.docs / document
        text = path.read_text(encoding="utf-8")
        wanted = updated(text, name, make())
        if text == wanted:
            continue
        stale += 1
        if options.check:
            print(f"{path}: the part {name} is not current: run python -m aibrix_connector.reference", file=sys.stderr)
        else:
            path.write_text(wanted, encoding="utf-8")
            print(f"{path}: updated")
    return int(options.check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
