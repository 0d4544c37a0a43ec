"""``python -m tests.benchmarks.parts.poll URL COUNT PAUSE``: GET a URL with COUNT clients until standard input ends.

In a process of its own: threads beside the measurement would hold its interpreter's lock.
"""

from __future__ import annotations

import http.client
import sys
import threading
import time
import urllib.parse

ANSWER_SECONDS = 60.0


def get(url: str) -> float:
    """Return the seconds of one GET over a connection of its own.

    Raises
    ------
    RuntimeError
        The status is not 200.
    """
    target = urllib.parse.urlsplit(url)
    began = time.perf_counter()
    connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", f"{target.path}?{target.query}")
        response = connection.getresponse()
        response.read()
        if response.status != 200:
            raise RuntimeError(f"GET {url}: {response.status}")
    finally:
        connection.close()
    return time.perf_counter() - began


def main() -> None:
    """Poll, and say on standard output when each client has its first response."""
    url, count, pause_seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    stop, started = threading.Event(), threading.Barrier(count + 1)

    def poll() -> None:
        get(url)
        started.wait()
        while not stop.wait(pause_seconds):
            get(url)

    for _ in range(count):
        threading.Thread(target=poll).start()
    started.wait()
    sys.stdout.write("started\n")
    sys.stdout.flush()
    sys.stdin.read()
    stop.set()


if __name__ == "__main__":
    main()
