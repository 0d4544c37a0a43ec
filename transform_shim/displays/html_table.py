"""The cells of a table in the HTML of a data frame, as text; the HTML itself is never shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

__all__ = ["HtmlTable", "table_in"]

#: Longer HTML is not read: a frame of pandas or Polars shows some tens of rows.
_MOST_CHARACTERS = 1_000_000
#: Cells that one cell may span: the size is the user's text.
_MOST_SPAN = 100


@dataclass(slots=True)
class HtmlTable:
    """The first table of a text.

    Attributes
    ----------
    header, rows : list of list of str
        The cells by row; a cell that spans several is in the first of them.
    index_columns : int
        How many columns from the left name the rows.
    """

    header: list[list[str]] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    index_columns: int = 0


def table_in(html: str) -> HtmlTable | None:
    """Return the first table in a text of HTML.

    Parameters
    ----------
    html : str
        Any text.

    Returns
    -------
    HtmlTable or None
        None if there is no table with a cell in it.
    """
    if "<table" not in html or len(html) > _MOST_CHARACTERS:
        return None
    parser = _TableParser()
    parser.feed(html)
    parser.close()
    return parser.table if parser.table.header or parser.table.rows else None


class _TableParser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.table = HtmlTable()
        self._is_over = False
        self._is_head = self._has_parts = False
        self._row: list[str] | None = None
        self._head_cells = 0
        self._is_all_head = True
        self._cell: list[str] | None = None
        self._span = 1
        #: Column to the number of further rows that a cell above it spans.
        self._from_above: dict[int, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._is_over:
            return
        if tag in ("thead", "tbody"):
            self._is_head, self._has_parts = tag == "thead", True
        elif tag == "tr":
            self._end_row()
            self._row, self._head_cells, self._is_all_head = [], 0, True
        elif tag in ("th", "td") and self._row is not None:
            self._end_cell()
            self._begin_cell(tag, dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        if tag in ("th", "td"):
            self._end_cell()
        elif tag in ("tr", "thead", "table"):
            self._end_row()
            self._is_head = self._is_head and tag == "tr"
            self._is_over = self._is_over or tag == "table"

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell.append(data)

    def _begin_cell(self, tag: str, attributes: dict[str, str | None]) -> None:
        row = self._row or []
        self._fill_from_above(row)
        if tag == "th" and self._is_all_head:
            self._head_cells = len(row) + 1
        self._is_all_head = self._is_all_head and tag == "th"
        self._cell, self._span = [], _span(attributes.get("colspan"))
        if (below := _span(attributes.get("rowspan")) - 1) > 0:
            self._from_above |= {len(row) + offset: below for offset in range(self._span)}

    def _end_cell(self) -> None:
        if self._cell is not None and self._row is not None:
            self._row += [" ".join("".join(self._cell).split()), *[""] * (self._span - 1)]
        self._cell = None

    def _end_row(self) -> None:
        self._end_cell()
        row, self._row = self._row, None
        if not row:
            return
        if self._is_head or (self._is_all_head and not self._has_parts):
            self.table.header.append(row)
        else:
            self.table.index_columns = max(self.table.index_columns, self._head_cells)
            self.table.rows.append(row)

    def _fill_from_above(self, row: list[str]) -> None:
        while self._from_above.get(len(row), 0) > 0:
            self._from_above[len(row)] -= 1
            row.append("")


def _span(text: str | None) -> int:
    return min(int(text), _MOST_SPAN) if text is not None and text.isdecimal() and int(text) > 0 else 1
