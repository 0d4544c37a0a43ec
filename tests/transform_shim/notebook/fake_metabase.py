"""A Metabase that knows one table, and takes one key."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "mb_s3cret_k3y"
ROWS = 4500
TABLES = [
    {"id": 7, "name": "orders", "schema": "public", "db_id": 3},
    {"id": 8, "name": "people", "schema": "a", "db_id": 3},
    {"id": 9, "name": "people", "schema": "b", "db_id": 3},
]
METADATA = {
    "id": 7,
    "db_id": 3,
    "fields": [
        {"id": 1, "name": "id", "base_type": "type/Integer", "semantic_type": "type/PK", "position": 0},
        {"id": 2, "name": "placed", "base_type": "type/DateTimeWithTZ", "database_type": "timestamptz", "position": 1},
    ],
}


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        routes = {"/api/table": TABLES, "/api/table/7/query_metadata": METADATA}
        self._answer(200, routes.get(self.path, {}))

    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["query"]
        page, items = query["page"]["page"], query["page"]["items"]
        rows = [[number, "2024-01-15T10:30:00Z"] for number in range((page - 1) * items, min(page * items, ROWS))]
        self._answer(202, {"status": "completed", "data": {"rows": rows}})

    def _answer(self, status: int, value: Any) -> None:
        if self.headers.get("x-api-key") != KEY:
            status, value = 401, "Unauthenticated"
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


class FakeMetabase:
    def __enter__(self) -> str:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
