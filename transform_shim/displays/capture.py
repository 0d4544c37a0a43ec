"""`display()` and figures of a job: as text in its log, and as images and tables in a file for the gateway.

A job has no front end, so this module replaces two methods of IPython: the formatter's, which turns an object into
texts and images, and the publisher's, which sends them. HTML and scripts are dropped.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transform_shim.core.notices import warn
from transform_shim.displays.html_table import table_in
from transform_shim.displays.recorder import Recorder

__all__ = ["DisplayCapture", "captured_displays", "figures_shown"]

_TAKEN = frozenset({"text/plain", "text/markdown", "text/html", "image/png", "image/svg+xml"})
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class DisplayCapture:
    """The displays of a job under way.

    Parameters
    ----------
    shell : InteractiveShell
        Its formatter serves every object but figures.
    recorder : Recorder
        Keeps images and tables.
    """

    def __init__(self, shell: Any, recorder: Recorder) -> None:
        self._plain_format = shell.display_formatter.format
        self._recorder = recorder

    def format(self, value: Any, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the representations of an object that are taken, in place of `DisplayFormatter.format`."""
        if _is_figure(value):
            image = {"image/png": _drawn(value)} if self._recorder.has_room() else {}
            return {"text/plain": repr(value), **image}, {}
        formatted: tuple[dict[str, Any], dict[str, Any]] = self._plain_format(value, include=_TAKEN, exclude=exclude)
        return formatted

    def publish(self, data: Mapping[str, Any], *_arguments: object, **_options: object) -> None:
        """Take the representations of an object, in place of `DisplayPublisher.publish`."""
        text = _text(data)
        is_kept = self._keep(data, text)
        with contextlib.suppress(AttributeError, OSError, ValueError):  # closed or removed by user code
            write = getattr(sys.stdout, "write_display", sys.stdout.write) if is_kept else sys.stdout.write
            write(f"{text}\n")

    def _keep(self, data: Mapping[str, Any], text: str) -> bool:
        """Keep the image or the table of an object, and return whether there is one."""
        if not any(name in data for name in ("image/png", "image/svg+xml", "text/html")):
            return False
        png, svg, html = _png(data.get("image/png")), data.get("image/svg+xml"), data.get("text/html")
        if png is not None:
            return self._recorder.image("image/png", png, text)
        if isinstance(svg, str):
            return self._recorder.image("image/svg+xml", svg.encode("utf-8", "replace"), text)
        if isinstance(html, str) and (table := table_in(html)) is not None:
            return self._recorder.table(table.header, table.rows, table.index_columns)
        return False

    def show_figures(self) -> None:
        """Display the figures that pyplot has open, and close them, as a notebook does at the end of a cell."""
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is None:
            return
        try:
            for number in pyplot.get_fignums():
                data, _ = self.format(pyplot.figure(number))
                self.publish(data)
            pyplot.close("all")
        except Exception as error:  # a figure is drawn only now, and its content is the user's
            warn(f"a figure cannot be drawn: {type(error).__name__}: {error}")


@contextlib.contextmanager
def captured_displays(path: Path | None) -> Iterator[DisplayCapture | None]:
    """Capture the displays of the code inside; do nothing if there is no path or no shell.

    Parameters
    ----------
    path : Path or None
        File for images and tables.

    Yields
    ------
    DisplayCapture or None
        Shows the figures that are still open.
    """
    shell = _shell()
    if path is None or shell is None:
        yield None
        return
    displays = DisplayCapture(shell, Recorder(path))
    formatter, publisher = vars(shell.display_formatter), vars(shell.display_pub)
    formatter["format"], publisher["publish"] = displays.format, displays.publish
    try:
        yield displays
    finally:
        formatter.pop("format", None)
        publisher.pop("publish", None)


@contextlib.contextmanager
def figures_shown(displays: DisplayCapture | None) -> Iterator[None]:
    """Show the open figures when the code inside has ended, also with an exception that leaves memory to draw them."""
    if displays is None:
        yield
        return
    process = os.getpid()
    try:
        yield
    except Exception as error:
        if os.getpid() == process and not isinstance(error, MemoryError):
            displays.show_figures()
        raise
    if os.getpid() == process:  # else it is a child that user code forked
        displays.show_figures()


def _shell() -> Any:
    module = sys.modules.get("IPython.core.interactiveshell")
    return module.InteractiveShell.instance() if module is not None and module.InteractiveShell.initialized() else None


def _is_figure(value: object) -> bool:
    module = sys.modules.get("matplotlib.figure")
    return module is not None and isinstance(value, module.Figure)


def _drawn(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight")
    return file.getvalue()


def _text(data: Mapping[str, Any]) -> str:
    """Return the text for the log; the source of Markdown says more than the name of its class."""
    name = "text/markdown" if "text/markdown" in data and "text/html" not in data else "text/plain"
    text = data.get(name)
    return text if isinstance(text, str) else f"<{', '.join(map(str, data))}>"


def _png(value: object) -> bytes | None:
    """Return the bytes of a PNG, which IPython has as they are or as base64."""
    if isinstance(value, str):
        with contextlib.suppress(binascii.Error, ValueError):
            value = base64.b64decode(value)
    return value if isinstance(value, bytes) and value.startswith(_PNG_SIGNATURE) else None
