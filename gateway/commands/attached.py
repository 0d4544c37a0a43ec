"""``python -m gateway.commands.attached --existing FILE``: `jupyter console` whose Ctrl-C reaches the kernel.

Jupyter's own interrupts only kernels that it started, so a statement that does not end would take the console with it.
"""

from __future__ import annotations

from typing import Any

from jupyter_console.app import ZMQTerminalIPythonApp


class AttachedConsole(ZMQTerminalIPythonApp):  # type: ignore[misc]
    """A console on a kernel that is there already."""

    def handle_sigint(self, *arguments: Any) -> None:
        """Ask the kernel to interrupt itself; at the prompt there is nothing but the line to give up."""
        if not self.shell._executing:
            raise KeyboardInterrupt
        self.kernel_client.control_channel.send(self.kernel_client.session.msg("interrupt_request"))


if __name__ == "__main__":
    AttachedConsole.launch_instance()
