"""The displays of a job: images and tables, bounded in number and bytes, and the profile of its result.

The content comes from the job and may be anything. An image is a PNG or an SVG to be shown as an image, where no script
in it runs; a table is text by rows. HTML of a job is in none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Annotated, Literal

from msgspec import Meta, Struct

#: Displays that are kept of one job, and the bytes of their content in all.
MOST_DISPLAYS = 20
MOST_DISPLAY_BYTES = 2 << 20
#: Bytes of one image: in base64 below 1 MB, the default bound of a message of NATS.
MOST_IMAGE_BYTES = 512 << 10
MOST_ROWS = 100
MOST_COLUMNS = 50
#: Characters of a cell, or of an image's text.
MOST_CHARACTERS = 1000
#: Columns of a profile.
MOST_PROFILE_COLUMNS = 500

Text = Annotated[str, Meta(max_length=MOST_CHARACTERS)]
Figure = Annotated[str, Meta(max_length=40)]
Count = Annotated[int, Meta(ge=0, le=1 << 62)]
Rows = Annotated[tuple[Annotated[tuple[Text, ...], Meta(max_length=MOST_COLUMNS)], ...], Meta(max_length=MOST_ROWS)]


class DisplayedImage(Struct, frozen=True, forbid_unknown_fields=True, tag="image"):
    """An image.

    Attributes
    ----------
    media_type : {'image/png', 'image/svg+xml'}
    data : bytes
        The file; base64 in JSON.
    text : str
        The displayed object as text, such as ``<Figure size 640x480 with 1 Axes>``.
    """

    media_type: Literal["image/png", "image/svg+xml"]
    data: Annotated[bytes, Meta(max_length=MOST_IMAGE_BYTES)]
    text: Text = ""

    @property
    def size_bytes(self) -> int:
        return len(self.data)


class DisplayedTable(Struct, frozen=True, forbid_unknown_fields=True, tag="table"):
    """A table.

    Attributes
    ----------
    header, rows : tuple of tuple of str
        The cells by row; a row may be shorter than others.
    index_columns : int
        How many columns from the left name the rows.
    """

    header: Rows
    rows: Rows
    index_columns: Annotated[int, Meta(ge=0, le=MOST_COLUMNS)] = 0

    @property
    def size_bytes(self) -> int:
        return len("".join(chain.from_iterable((*self.header, *self.rows))).encode("utf-8", "replace"))


class ColumnProfile(Struct, frozen=True, forbid_unknown_fields=True):
    """One column of a result in figures, as texts where the kernel has chosen how they are shown.

    Its members are those of `transform_shim.displays.values.ColumnProfile`; the histogram has 12 bins.
    """

    name: Text
    base_type: Text
    nulls: Count
    distinct: Count | None = None
    smallest: Figure | None = None
    largest: Figure | None = None
    quartiles: tuple[Figure, Figure, Figure] | None = None
    histogram: Annotated[tuple[Count, ...], Meta(min_length=12, max_length=12)] | None = None


class DisplayedProfile(Struct, frozen=True, forbid_unknown_fields=True, tag="profile"):
    """Figures about the columns of a job's result.

    Attributes
    ----------
    rows : int
        Number of rows that were profiled, from the first on.
    columns : tuple of ColumnProfile
    """

    rows: Count
    columns: Annotated[tuple[ColumnProfile, ...], Meta(max_length=MOST_PROFILE_COLUMNS)]

    def __post_init__(self) -> None:
        if any(column.nulls > self.rows for column in self.columns):
            raise ValueError("a column of the profile has more nulls than rows")

    @property
    def size_bytes(self) -> int:
        texts = (
            text
            for each in self.columns
            for text in (each.name, each.base_type, each.smallest, each.largest, *(each.quartiles or ()))
        )
        return sum(len(text.encode("utf-8", "replace")) for text in texts if text is not None)


Display = DisplayedImage | DisplayedTable | DisplayedProfile


def has_room(kept: Sequence[Display], display: Display) -> bool:
    """Return whether a display can be kept beside those of its job that are kept already.

    A job has one profile, whose type bounds it: twenty images must not displace the profile that the caller requested.
    """
    if isinstance(display, DisplayedProfile):
        return not any(isinstance(each, DisplayedProfile) for each in kept)
    shown = [each for each in kept if not isinstance(each, DisplayedProfile)]
    if len(shown) >= MOST_DISPLAYS:
        return False
    size_bytes = display.size_bytes + sum(each.size_bytes for each in shown)
    return size_bytes <= MOST_DISPLAY_BYTES
