"""One job of the subprocess design, as its own program: ``python subprocess_job.py REQUEST.json``.

Imports pandas, downloads the tables, runs ``transform()``, uploads output and manifest. The exit code is the
verdict.
"""

import inspect
import json
import sys
import urllib.request
from pathlib import Path

import pandas as pd

BASE_TYPES = {"i": "Integer", "u": "Integer", "f": "Float", "b": "Boolean", "M": "DateTime"}


def download(url: str, path: Path) -> None:
    """Stream one object to a file."""
    with urllib.request.urlopen(url, timeout=60) as answer, path.open("wb") as file:
        while chunk := answer.read(1 << 20):
            file.write(chunk)


def upload(url: str, path: Path) -> None:
    """Stream one file to a presigned URL, with its length."""
    with path.open("rb") as file:
        request = urllib.request.Request(url, data=file, method="PUT")
        request.add_header("Content-Length", str(path.stat().st_size))
        urllib.request.urlopen(request, timeout=60).close()


def read_tables(request: dict[str, dict[str, str]]) -> dict[str, pd.DataFrame]:
    """Download and read every table of the request."""
    tables = {}
    for number, (alias, url) in enumerate(request.get("table_mapping", {}).items()):
        path = Path(f"table-{number}.jsonl")
        download(url, path)
        frame = pd.read_json(path, lines=True) if path.stat().st_size else pd.DataFrame()
        if manifest_url := request.get("manifest_mapping", {}).get(alias):
            with urllib.request.urlopen(manifest_url, timeout=60) as answer:
                frame.attrs["source_metadata"] = json.load(answer)
        tables[alias] = frame
    return tables


def main() -> None:
    """Run one job."""
    request = json.loads(Path(sys.argv[1]).read_text())
    Path("script.py").write_text(request["code"])
    sys.path.insert(0, str(Path.cwd()))
    import script  # type: ignore[import-not-found]

    tables = read_tables(request)
    wanted = inspect.signature(script.transform).parameters
    frame = script.transform(**{alias: table for alias, table in tables.items() if alias in wanted})
    fields = [
        {"name": str(name), "base_type": BASE_TYPES.get(frame[name].dtype.kind, "Text")} for name in frame.columns
    ]
    manifest = {"schema_version": 1, "data_format": "jsonl", "data_version": 1, "fields": fields}
    output_path, manifest_path = Path("output.jsonl"), Path("manifest.json")
    frame.to_json(output_path, orient="records", lines=True, date_format="iso")
    manifest_path.write_text(json.dumps(manifest))
    upload(request["output_url"], output_path)
    upload(request["output_manifest_url"], manifest_path)
    print(f"Successfully saved {len(frame)} rows to S3")
    print(f"Successfully saved output manifest with {len(fields)} fields to S3")


if __name__ == "__main__":
    main()
