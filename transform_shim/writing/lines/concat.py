"""Rows of text put together from pieces, all rows at once.

Arrow's own join (``binary_join_element_wise``) takes 17 ns a piece, which was two thirds of the time for JSON lines.
Here each text lies once in a pool, a row is the places of its pieces there, and one ``take`` of all places, row by row,
copies the texts one after the other: 5 ns a piece, and the data buffer of the result is the rows.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transform_shim.core.array_buffers import null_mask, used_bytes
from transform_shim.writing.lines.cell_texts import TEXT

__all__ = ["JoinedRows", "Places"]

#: For each row, the place of its text among those that there are.
Places = np.ndarray[Any, np.dtype[np.int32]]

#: Texts that are taken at once: with twice as many more memory is touched for the first time, 2 us a page; with half as
#: many numpy's calls take longer than that.
_BLOCK_TEXTS = 1 << 16
#: A text made in Python costs as much time, 0.1 us, as a piece does in 16 rows.
_ROWS_PER_CHOICE = 32
_FEWEST_CHOICES = 8


class _Piece(NamedTuple):
    """Texts of the pool, from `begin` among the short ones or the arrays', and which of them each row has.

    No places: every row has the first.
    """

    is_short: bool
    begin: int
    places: Places | None


class JoinedRows:
    """Pieces of text, added from left to right; :meth:`joined` makes rows of them."""

    def __init__(self, rows: int) -> None:
        self._row_numbers: Places = np.arange(rows, dtype=np.int32)
        self._most_choices = max(_FEWEST_CHOICES, rows // _ROWS_PER_CHOICE)
        self._pieces: list[_Piece] = []
        self._short: list[str] = []
        self._arrays: list[pa.Array] = []
        self._array_texts = 0
        # the next piece, which may still grow: one text or a choice, and the text behind it in every row
        self._choices: list[str] = [""]
        self._chosen: Places | None = None
        self._behind = ""

    def literal(self, text: str) -> None:
        """Add the same text to all rows."""
        self._behind += text

    def choice(self, texts: Sequence[str], places: Places) -> None:
        """Add one of a few texts to each row; neighbouring choices are combined while the result is small."""
        if len(self._choices) * len(texts) > self._most_choices:
            self._end_piece()
        self._choices = [before + self._behind + text for before in self._choices for text in texts]
        self._chosen = places if self._chosen is None else self._chosen * len(texts) + places
        self._behind = ""

    def texts(self, texts: pa.Array, null: str) -> None:
        """Add to each row its own text, `null` where it is null."""
        if not texts.null_count:
            self._add_piece([texts], self._row_numbers)
        elif texts.null_count == len(texts):
            self.literal(null)
        else:
            places = self._row_numbers.copy()
            places[null_mask(texts)] = len(texts)
            self._add_piece([_without_validity(texts), _one(null)], places)

    def shared(self, texts: pa.Array, places: Places) -> None:
        """Add to each row one of several texts, none of which is null."""
        if len(texts) == 1:
            self.literal(texts[0].as_py())
        elif len(texts) <= self._most_choices:
            self.choice(texts.to_pylist(), places)
        else:
            if self._chosen is None and self._behind:  # a key: 10 ns a text, where a piece of its own takes 6 ns a row
                texts, self._behind = pc.utf8_replace_slice(texts, 0, 0, self._behind), ""
            self._add_piece([texts], places)

    def joined(self) -> list[memoryview]:
        """Return all rows one after the other, in blocks that each end with a row."""
        self._end_piece()
        arrays, self._arrays = self._arrays, []  # freed as soon as they are copied: a cell may have 100 MB
        pool = pa.concat_arrays([pa.array(self._short, TEXT), *arrays])
        del arrays
        begins = np.array([p.begin if p.is_short else p.begin + len(self._short) for p in self._pieces], np.int32)
        is_own = np.array([p.places is self._row_numbers for p in self._pieces], np.int32)
        rows, step = len(self._row_numbers), max(1, _BLOCK_TEXTS // len(begins))
        table = np.empty((min(rows, step), len(begins)), np.int32)
        blocks = []
        for start in range(0, rows, step):
            block = table[: rows - start]
            np.multiply.outer(self._row_numbers[start : start + step], is_own, out=block)
            block += begins
            for number, piece in enumerate(self._pieces):
                if piece.places is not None and piece.places is not self._row_numbers:
                    block[:, number] += piece.places[start : start + step]
            blocks.append(used_bytes(pc.take(pool, pa.array(block.reshape(-1)), boundscheck=False)).data)
        return blocks

    def _add_piece(self, arrays: list[pa.Array], places: Places) -> None:
        self._end_piece()
        self._pieces.append(_Piece(False, self._array_texts, places))
        self._arrays += arrays
        self._array_texts += sum(map(len, arrays))

    def _end_piece(self) -> None:
        if self._chosen is not None or self._behind:
            self._pieces.append(_Piece(True, len(self._short), self._chosen))
            self._short += [before + self._behind for before in self._choices]
            self._choices, self._chosen, self._behind = [""], None, ""


@functools.cache
def _one(text: str) -> pa.Array:
    return pa.array([text], TEXT)


def _without_validity(texts: pa.Array) -> pa.Array:
    """Return the same texts without nulls, which slow ``take`` down; their bytes are arbitrary."""
    _, offsets, data = texts.buffers()
    return pa.Array.from_buffers(TEXT, len(texts), [None, offsets, data], 0, texts.offset)
