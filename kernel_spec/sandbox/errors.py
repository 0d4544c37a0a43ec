"""The one failure of this package: a layer could not be put on."""

from __future__ import annotations


class SandboxError(Exception):
    """A layer could not be put on; the process that got it must end and never run anything of a job.

    Attributes
    ----------
    layer : str
        Name of the layer, one of `kernel_spec.sandbox.LAYERS`.
    reason : str
        What failed, as a sentence with the value or the system error.
    """

    def __init__(self, layer: str, reason: str) -> None:
        super().__init__(f"sandbox layer {layer}: {reason}")
        self.layer = layer
        self.reason = reason
