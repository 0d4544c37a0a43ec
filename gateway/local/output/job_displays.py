"""The displays of a job, read from the file that the code inside the kernel wrote.

Each line of the file is one display as JSON. User code can write that file as well, so it is parsed strictly and within
bounds, and a PNG must be one. The kernel's side of the same contract is `transform_shim.displays.recorder`.
"""

from __future__ import annotations

import struct

import msgspec

from gateway.core.displays import (
    MOST_DISPLAY_BYTES,
    MOST_DISPLAYS,
    Display,
    DisplayedImage,
    has_room,
)

#: Largest file that is read: base64 and JSON take some more than the content.
DISPLAYS_CAP_BYTES = 2 * MOST_DISPLAY_BYTES

#: Pixels of an image in each direction; a small PNG can unpack to gigabytes.
MOST_PIXELS = 10_000

#: Signature, then length, type and first members of the chunk IHDR (PNG specification, sections 5.2 and 11.2.2).
_PNG_HEAD = struct.Struct(">8sI4sII")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

_DECODER: msgspec.json.Decoder[Display] = msgspec.json.Decoder(Display)


def parse_displays(data: bytes | None) -> list[Display]:
    """Return the displays of a job that are valid, as many as are kept.

    Parameters
    ----------
    data : bytes or None
        Content of the file; None if there is no such file. Its last line is not whole where the job was killed.

    Returns
    -------
    list of Display
        In the order in which they were displayed.
    """
    found: list[Display] = []
    for line in (data or b"").split(b"\n", 4 * MOST_DISPLAYS)[: 4 * MOST_DISPLAYS]:
        try:
            display = _DECODER.decode(line)
        except (ValueError, RecursionError):  # text that is not UTF-8 raises no error of msgspec's own
            continue
        if isinstance(display, DisplayedImage) and not _is_image(display):
            continue
        if has_room(found, display):
            found.append(display)
    return found


def _is_image(display: DisplayedImage) -> bool:
    if display.media_type == "image/svg+xml":
        return b"<svg" in display.data
    if len(display.data) < _PNG_HEAD.size:
        return False
    signature, _, chunk, width, height = _PNG_HEAD.unpack_from(display.data)
    return (signature, chunk) == (_PNG_SIGNATURE, b"IHDR") and 0 < width <= MOST_PIXELS and 0 < height <= MOST_PIXELS
