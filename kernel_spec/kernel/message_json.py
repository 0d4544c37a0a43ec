"""Message packing that survives the kernel's memory limit.

jupyter_client packs with orjson where it is installed. orjson 3.13 does not check an allocation that a limit of the
address space refuses: a cell that prints 50 MB beside a large frame then ends the kernel by SIGSEGV. The json module
raises MemoryError. A reply takes 23 µs instead of 3 µs (measured), and the kernel of a job sends few messages, because
its output goes through pipes.
"""

from __future__ import annotations

import json
from typing import Any

from jupyter_client.jsonutil import json_default
from jupyter_client.session import json_packer

# bound here: a script that replaces json.dumps must not break the kernel's messages
_encode = json.JSONEncoder(default=json_default, ensure_ascii=False, allow_nan=False).encode
_encode_escaped = json.JSONEncoder(default=json_default).encode
_decode_finite = json.JSONDecoder(parse_constant=lambda _: None).decode


def pack(message: Any) -> bytes:
    """Return a part of a message as JSON, with null for NaN and infinity, as orjson does.

    Parameters
    ----------
    message : object
        Header, parent header, metadata or content.

    Returns
    -------
    bytes
    """
    try:
        return _encode(message).encode()
    except ValueError:
        # NaN, infinity, or a lone surrogate, which UTF-8 cannot hold and an escape can
        return _encode_escaped(_decode_finite(_encode_escaped(message))).encode()
    except TypeError:
        packed: bytes = json_packer(message)
        return packed
