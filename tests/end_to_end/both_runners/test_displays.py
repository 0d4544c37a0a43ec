"""Displays of a job: text in its log, and images and tables that the gateway keeps within bounds."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from tests.support.gateway_process import GatewayProcess

RETURNS = "\n    return pd.DataFrame({'x': [1]})"
PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01"


def script(body: str) -> str:
    lines = "\n    ".join(body.strip().splitlines())
    return f"import pandas as pd\ndef transform():\n    {lines}{RETURNS}"


def displays_of(gateway: GatewayProcess, answer: dict[str, Any]) -> list[dict[str, Any]]:
    found = gateway.request("GET", f"/v1/jobs/{answer['execution_id']}/displays")
    assert found.status == 200, found.raw
    displays: list[dict[str, Any]] = found.body["displays"]
    assert len(displays) == answer.get("displays", 0)
    return displays


def texts(gateway: GatewayProcess, request_id: str) -> list[str]:
    return [event["message"] for event in gateway.log(request_id)]


def test_figures_are_images_and_text_in_the_log(running_gateway: GatewayProcess) -> None:
    body = """
import matplotlib.pyplot as plt
plt.plot([1, 2, 3])
plt.show()
print('between')
figure, _ = plt.subplots(figsize=(3, 2))
"""
    answer = running_gateway.execute(script(body), "figures").body
    assert texts(running_gateway, "figures")[:3] == [
        "<Figure size 640x480 with 1 Axes>", "between", "<Figure size 300x200 with 1 Axes>",
    ]  # fmt: skip
    shown = displays_of(running_gateway, answer)
    assert [(each["type"], each["media_type"]) for each in shown] == [("image", "image/png")] * 2
    assert all(base64.b64decode(each["data"]).startswith(PNG[:16]) for each in shown)
    assert [each["text"] for each in shown] == texts(running_gateway, "figures")[:3:2]


def test_frames_are_tables_and_no_html_is_passed_on(running_gateway: GatewayProcess) -> None:
    body = """
from IPython.display import HTML, Markdown, display as show
frame = pd.DataFrame({'a': [1.5, None], 'b': ['x', '<script>']}, index=pd.Index(['p', 'q'], name='key'))
display(frame)
show(frame.groupby('b').agg({'a': ['mean', 'max']}))
show(HTML('<script>alert(1)</script>'), Markdown('## Result'))
show('text', 7)
show({'text/html': '<b>only</b>'}, raw=True)
"""
    answer = running_gateway.execute(script(body), "frames").body
    first, second = displays_of(running_gateway, answer)
    assert first == {
        "type": "table",
        "header": [["", "a", "b"], ["key", "", ""]],
        "rows": [["p", "1.5", "x"], ["q", "NaN", "<script>"]],
        "index_columns": 1,
    }
    assert second["header"] == [["", "a", ""], ["", "mean", "max"], ["b", "", ""]]
    assert second["rows"] == [["<script>", "NaN", "NaN"], ["x", "1.5", "1.5"]]
    marked = [event["message"] for event in running_gateway.log("frames") if event.get("display")]
    log = texts(running_gateway, "frames")
    assert marked == log[:9]
    assert [line.split() for line in log[:3]] == [["a", "b"], ["key"], ["p", "1.5", "x"]]
    assert log[-7:-2] == ["<IPython.core.display.HTML object>", "## Result", "'text'", "7", "<text/html>"]


def test_too_much_is_cut_with_one_line_in_the_log(running_gateway: GatewayProcess) -> None:
    body = """
from IPython.display import Image, SVG
display(SVG('<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'))
display(Image(bytes([0x89]) + b'PNG' + bytes([13, 10, 26, 10]) + bytes(600_000)))
for n in range(30):
    display(pd.DataFrame({n: range(200)}, index=['i' * 5000] * 200))
"""
    answer = running_gateway.execute(script(body), "much").body
    shown = displays_of(running_gateway, answer)
    assert [each["type"] for each in shown] == ["image", *["table"] * 19]
    assert shown[0]["media_type"] == "image/svg+xml"
    warnings = [line for line in texts(running_gateway, "much") if line.startswith("WARNING")]
    assert warnings == [
        "WARNING: an image of 586 KiB is not shown; the largest that is shown has 512 KiB",
        "WARNING: further images and tables are not shown; a job shows at most 20 images and tables, and 2.0 MiB of them",
    ]


@pytest.mark.parametrize("end", ["raise ValueError('no')", "import os; os._exit(7)"])
def test_failed_job_shows_its_displays(running_gateway: GatewayProcess, end: str) -> None:
    answer = running_gateway.execute(script(f"display(pd.DataFrame({{'a': [1]}}))\n{end}"), "fails").body
    assert answer["exit_code"] != 0
    assert [each["rows"] for each in displays_of(running_gateway, answer)] == [[["0", "1"]]]


def forged(media_type: str, data: bytes) -> str:
    return json.dumps({"type": "image", "media_type": media_type, "data": base64.b64encode(data).decode(), "text": ""})


@pytest.mark.parametrize(
    "line",
    [
        forged("image/png", b"<script>alert(1)</script>" + bytes(100)),
        forged("image/png", PNG[:16] + b"\xff\xff\xff\xff" * 2 + bytes(100)),
        forged("text/html", b"<script>alert(1)</script>"),
        forged("image/svg+xml", b"no picture"),
        forged("image/svg+xml", b"<svg>" + bytes(1 << 20)),
        '{"type": "html", "data": "<script>"}',
        '{"type": "table", "header": [], "rows": [["' + "x" * 2000 + '"]], "index_columns": 0}',
        '{"type": "table", "header": [], "rows": [], "index_columns": 0, "html": ""}',
        "[" * 100_000,
        "\udcff",
    ],
)
def test_file_that_the_job_forged_shows_nothing(running_gateway: GatewayProcess, line: str) -> None:
    good = '{"type": "table", "header": [], "rows": [["kept"]], "index_columns": 0}'
    content = f"{line}\n{good}\n".encode("utf-8", "surrogateescape")
    body = (
        "import gc\nfrom pathlib import Path\n"
        "from transform_shim.displays.recorder import Recorder\n"
        "(recorder,) = [each for each in gc.get_objects() if isinstance(each, Recorder)]\n"
        f"recorder._path.write_bytes({content!r})"
    )
    answer = running_gateway.execute(script(body), "forged").body
    assert answer["exit_code"] == 0, answer
    assert [each["rows"] for each in displays_of(running_gateway, answer)] == [[["kept"]]]


def test_flood_of_forged_displays_is_cut(running_gateway: GatewayProcess) -> None:
    image = forged("image/png", PNG + bytes(250_000))
    body = (
        "import gc\nfrom transform_shim.displays.recorder import Recorder\n"
        "(recorder,) = [each for each in gc.get_objects() if isinstance(each, Recorder)]\n"
        f"recorder._path.write_text(({image!r} + chr(10)) * 10)"
    )
    answer = running_gateway.execute(script(body), "flood").body
    assert len(displays_of(running_gateway, answer)) == 8, "2 MiB in all"


def test_job_that_displays_nothing_pays_nothing(running_gateway: GatewayProcess) -> None:
    answer = running_gateway.execute(script("import sys\nprint([n for n in sys.modules if 'matplotlib' in n])"), "none")
    assert "displays" not in answer.body
    assert displays_of(running_gateway, answer.body) == []
    assert texts(running_gateway, "none")[0] == "[]"
