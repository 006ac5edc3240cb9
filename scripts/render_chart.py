"""Renders a Helm chart with Helm's own library, and prints what came of it as JSON.

    render_chart.py CHART VALUES.json

`VALUES.json` is a list of sets of values. The answer is `{"lint": {...}, "renders": [...]}`, with one entry per set:
`{"error": "..."}` where the schema or a template refuses it, else `{"objects": [...]}`. Runs in the environment of
`ensure_helm.sh`.
"""

import json
import sys
from typing import Any

import helm_python
import yaml


def render(chart: Any, values: dict[str, Any]) -> dict[str, Any]:
    """One set of values: its objects, or what is wrong with it."""
    try:
        chart.validate_schema(values)
        manifests = chart.render(values, name="kv", namespace="caches")
    except helm_python.HelmError as error:
        return {"error": str(error)}
    texts = [text for path, text in manifests.items() if not path.endswith("NOTES.txt")]
    objects = [document for text in texts for document in yaml.safe_load_all(text) if document]
    return {"objects": objects}


def main() -> None:
    """Reads the arguments, prints the answer."""
    path, values = sys.argv[1:]
    with open(values, encoding="utf-8") as file, helm_python.Chart.load(path) as chart:
        renders = [render(chart, entry) for entry in json.load(file)]
    print(json.dumps({"lint": helm_python.chart.lint(path, strict=True), "renders": renders}))


if __name__ == "__main__":
    main()
