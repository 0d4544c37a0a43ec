"""The page's files and headers. Their behaviour in a browser is tested in `tests/page`."""

from __future__ import annotations

import gzip
import html
import json
import re
from pathlib import Path

import pytest
from tornado.httpclient import HTTPResponse

from gateway.core.formats import FORMATS
from gateway.page import assets
from gateway.page.assets import BUILT
from tests.gateway.http.harness import Caller, body

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"

FIRST_VIEW_BYTES = 120_000
ALL_BYTES = 350_000


async def page(call: Caller) -> HTTPResponse:
    return await call.send("GET", "/", token=None, Accept=BROWSER)


@pytest.mark.parametrize("accept", ["*/*", "application/json", ""])
async def test_other_clients_still_get_json(call: Caller, accept: str) -> None:
    answer = await call.send("GET", "/", token=None, Accept=accept)
    assert body(answer)["name"] == "transform-gateway"
    assert answer.headers["Vary"] == "Accept"


async def test_a_browser_gets_the_page_under_a_strict_policy(call: Caller) -> None:
    first, second = await page(call), await page(call)
    assert first.headers["Content-Type"] == "text/html; charset=utf-8"
    assert first.headers["X-Content-Type-Options"] == "nosniff"
    assert first.headers["Cache-Control"] == "no-store"
    policy = first.headers["Content-Security-Policy"]
    assert policy != second.headers["Content-Security-Policy"], "a nonce is used once"
    directives = dict(part.split(" ", 1) for part in policy.split("; "))
    assert directives["default-src"] == "'none'"
    assert directives["script-src"] == "'self'"
    assert (directives["connect-src"], directives["frame-ancestors"]) == ("'self'", "'none'")
    assert "unsafe" not in policy
    nonce = re.search("'nonce-([^']+)'", directives["style-src"])
    assert nonce is not None
    assert f'content="{nonce[1]}"'.encode() in first.body


async def test_the_page_names_only_files_of_this_gateway_which_browsers_may_keep(call: Caller) -> None:
    text = (await page(call)).body.decode()
    named = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=|<style", text)
    for path in (name for name in named if name != "/v1/status"):
        assert path.startswith("/page/")
        answer = await call.send("GET", path, token=None, Accept_Encoding="gzip")
        assert answer.code == 200
        assert "immutable" in answer.headers["Cache-Control"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_an_upgrade_below_a_running_gateway_leaves_its_page_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("index.html", "index-1.js", "later-1.js"):
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(assets, "BUILT", tmp_path)
    assets._assets.cache_clear()
    assert assets.asset("index.html") is not None
    (tmp_path / "later-1.js").rename(tmp_path / "later-2.js")
    found = [name for name in ("later-1.js", "later-2.js") if assets.asset(name) is not None]
    assets._assets.cache_clear()
    assert found == ["later-1.js"]


async def test_the_page_has_the_formats_of_the_gateway(call: Caller) -> None:
    found = re.search(r'<meta name="formats" content="([^"]+)">', (await page(call)).body.decode())
    assert found is not None
    assert json.loads(html.unescape(found[1])) == {name: list(facts.endings) for name, facts in FORMATS.items()}


async def test_files_are_small() -> None:
    sizes = {path.name: len(gzip.compress(path.read_bytes())) for path in BUILT.iterdir()}
    first = (BUILT / "index.html").read_text()
    assert sum(size for name, size in sizes.items() if name in first) < FIRST_VIEW_BYTES
    assert sum(sizes.values()) < ALL_BYTES


@pytest.mark.parametrize("name", ["nosuch.js", "index.html", "..%2Fassets.py", "%2e%2e", "a%00.js"])
async def test_other_names_are_404(call: Caller, name: str) -> None:
    assert (await call.send("GET", f"/page/{name}", token=None)).code in (400, 404)


@pytest.mark.parametrize("settings", [{"enable_page": False}], indirect=True)
async def test_the_page_can_be_switched_off(call: Caller) -> None:
    assert body(await page(call))["name"] == "transform-gateway"
    script = next(path.name for path in BUILT.iterdir() if path.suffix == ".js")
    assert (await call.send("GET", f"/page/{script}", token=None)).code == 404
