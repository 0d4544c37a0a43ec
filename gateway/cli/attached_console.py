"""``python -m gateway.cli.attached_console --existing FILE``: a `jupyter console` whose Ctrl-C reaches the kernel.

Jupyter's own console interrupts only kernels that it started, so with an endless statement Ctrl-C would end the
console instead.
"""

from __future__ import annotations

from typing import Any

from jupyter_console.app import ZMQTerminalIPythonApp


class AttachedConsole(ZMQTerminalIPythonApp):  # type: ignore[misc]
    """A console on an existing kernel."""

    def handle_sigint(self, *arguments: Any) -> None:
        """Ask the kernel to interrupt itself, or discard the current line at the prompt."""
        if not self.shell._executing:
            raise KeyboardInterrupt
        request = self.kernel_client.session.msg("interrupt_request")
        # The kernel tells when it begins and ends each request. Jupyter's console takes the end of any request of its
        # session for that of the statement, and shows nothing of it any more, such as its traceback.
        request["header"]["session"] += "-interrupt"
        self.kernel_client.control_channel.send(request)


if __name__ == "__main__":
    AttachedConsole.launch_instance()
