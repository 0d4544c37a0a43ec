"""The error of this package: a layer could not be applied."""

from __future__ import annotations


class SandboxError(Exception):
    """A layer could not be applied; the process in which it is raised must end without running anything of a job.

    Attributes
    ----------
    layer : str
        Name of the layer, one of `kernel_spec.sandbox.LAYERS`.
    reason : str
        The failure as a sentence, with the value or the system error.
    """

    def __init__(self, layer: str, reason: str) -> None:
        super().__init__(f"sandbox layer {layer}: {reason}")
        self.layer = layer
        self.reason = reason
