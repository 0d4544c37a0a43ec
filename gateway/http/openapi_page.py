"""The API description as one HTML page, without scripts and external files, as its Content-Security-Policy demands."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable
from typing import Any

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd }
code { font-family: ui-monospace, monospace }
table { border-collapse: collapse; width: 100%; font-size: .9rem }
td { border-bottom: 1px solid #eee; padding: .3rem .6rem; text-align: left; vertical-align: top }
@media (prefers-color-scheme: dark) {
  body { background: #181818; color: #ddd }
  td, h2 { border-color: #444 }
  a { color: #8bf }
}
"""


def docs_page(document: dict[str, Any]) -> str:
    """Return an OpenAPI document as an HTML page."""
    info = document["info"]
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8">',
        f"<title>{_text(info['title'])}</title><style>{STYLE}</style>",
        f"<h1>{_text(info['title'])} {_text(info['version'])}</h1><p>{_text(info['description'])}</p>",
        '<p>OpenAPI document: <a href="/openapi.json"><code>/openapi.json</code></a></p>',
    ]
    for path, methods in document["paths"].items():
        parts += [_operation(path, method, operation) for method, operation in methods.items()]
    parts.append("<h2>Objects</h2>")
    parts += [_object(name, schema) for name, schema in document["components"]["schemas"].items()]
    return "".join(parts) + "</html>"


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    token = "needs the token" if operation["security"] else "open to all"
    rows = [("takes", _media(operation["requestBody"]["content"]))] if "requestBody" in operation else []
    for parameter in operation.get("parameters", []):
        text = parameter.get("description") or parameter["schema"].get("description") or parameter["in"]
        rows.append((f"<code>{_text(parameter['name'])}</code>", _text(text)))
    rows += [(status, _media(response.get("content", {}))) for status, response in operation["responses"].items()]
    heading = f"<h2>{method.upper()} <code>{_text(path)}</code></h2>"
    return f"{heading}<p>{_text(operation['summary'])} ({token})</p>{_table(rows)}"


def _object(name: str, schema: dict[str, Any]) -> str:
    required = schema.get("required", [])
    rows = []
    for member, entry in schema.get("properties", {}).items():
        mark = " *" if member in required else ""
        kinds = ", ".join(dict.fromkeys(_kinds(entry)))
        rows.append((f"<code>{_text(member)}</code>{mark}", _text(kinds), _text(entry.get("description", ""))))
    return f'<h3 id="{_text(name)}">{_text(name)}</h3><p>{_text(schema.get("description", ""))}</p>{_table(rows)}'


def _media(content: dict[str, Any]) -> str:
    lines = []
    for media_type, entry in content.items():
        names = re.findall(r"schemas/(\w+)", json.dumps(entry))
        links = " or ".join(f'<a href="#{name}">{name}</a>' for name in names)
        lines.append(f"<code>{_text(media_type)}</code> {links}")
    return "<br>".join(lines)


def _kinds(entry: dict[str, Any]) -> list[str]:
    found = re.findall(r'"type": "(\w+)"|schemas/(\w+)"', json.dumps(entry))
    return [first or second for first, second in found]


def _table(rows: Iterable[tuple[str, ...]]) -> str:
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{lines}</table>" if lines else ""


def _text(text: object) -> str:
    return re.sub("`([^`]+)`", r"<code>\1</code>", html.escape(str(text)))
