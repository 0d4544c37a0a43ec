"""Log lines of the bytes of one stream, in bounded memory and a bounded number at a time."""

from __future__ import annotations

import codecs
import time

from gateway.core.events import EventSink, LogLine, StreamName


class LineSplitter:
    """Turns bytes of one stream into log lines.

    Parameters
    ----------
    stream : {'stdout', 'stderr'}
        Stream of the lines.
    cap_bytes : int
        Longest line that is kept whole; a longer one is cut, with a note.
    """

    def __init__(self, stream: StreamName, cap_bytes: int) -> None:
        self.stream: StreamName = stream
        self._cap_bytes = cap_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._waiting = ""
        self._is_display = False
        self._parts: list[str] = []
        self._is_display_held = True
        self._held_characters = 0
        self._dropped_characters = 0

    @property
    def is_behind(self) -> bool:
        """Whether text waits for `emit_lines`."""
        return bool(self._waiting)

    def feed(self, data: bytes, *, is_display: bool = False) -> None:
        """Decode bytes.

        Parameters
        ----------
        data : bytes
            The next bytes of the stream.
        is_display : bool
            Whether they are the text of a display; a line of only such text is marked. No text of the other kind may
            wait.
        """
        self._waiting += self._decoder.decode(data)
        self._is_display = is_display

    def emit_lines(self, sink: EventSink, most_lines: int) -> int:
        """Emit lines that are complete.

        Parameters
        ----------
        sink : EventSink
            Takes the lines.
        most_lines : int
            Bound of their number. Unless it is reached, nothing waits afterwards but the beginning of a line.

        Returns
        -------
        int
            Number of lines emitted.
        """
        lines = self._waiting.split("\n", most_lines)
        self._waiting = lines.pop()
        if len(lines) < most_lines:
            beginning, self._waiting = self._waiting, ""
        else:
            beginning = ""
        now = time.time()
        for line in lines:
            if self._parts or len(line) > self._cap_bytes:
                self._hold(line)
                self._emit(now, sink)
            else:
                sink.emit(LogLine(now, self.stream, line.removesuffix("\r"), self._is_display))
        self._hold(beginning)
        return len(lines)

    def finish(self, sink: EventSink) -> None:
        """Emit all that is left, also the text after the last newline.

        Parameters
        ----------
        sink : EventSink
            Takes the lines.
        """
        self._waiting += self._decoder.decode(b"", final=True)
        self.emit_lines(sink, 1 + len(self._waiting))
        if self._held_characters:
            self._emit(time.time(), sink)

    def _hold(self, text: str) -> None:
        self._is_display_held = self._is_display_held and (self._is_display or not text)
        room = self._cap_bytes - self._held_characters
        if len(text) > room:
            self._dropped_characters += len(text) - max(room, 0)
            text = text[: max(room, 0)]
        if text:
            self._parts.append(text)
            self._held_characters += len(text)

    def _emit(self, now: float, sink: EventSink) -> None:
        message = "".join(self._parts).removesuffix("\r")
        if self._dropped_characters:
            message += f"... ({self._dropped_characters} characters of this line dropped)"
        line = LogLine(now, self.stream, message, self._is_display_held)
        self._parts, self._held_characters, self._dropped_characters, self._is_display_held = [], 0, 0, True
        sink.emit(line)
