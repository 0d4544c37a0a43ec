"""One exception for each failure code of a job: `FailureCode.MEMORY_LIMIT` is raised as `MemoryLimit`.

>>> from gateway.client import failures
>>> try:  # doctest: +SKIP
...     client.run(script)
... except failures.MemoryLimit as failure:
...     print(failure.message)
"""

from __future__ import annotations

from gateway.client.errors import TransformFailed
from gateway.core.errors import FailureCode


class UserError(TransformFailed):
    code = FailureCode.USER_ERROR


class SyntaxError(TransformFailed):
    code = FailureCode.SYNTAX_ERROR


class InvalidReturn(TransformFailed):
    code = FailureCode.INVALID_RETURN


class NoTransform(TransformFailed):
    code = FailureCode.NO_TRANSFORM


class MissingTable(TransformFailed):
    code = FailureCode.MISSING_TABLE


class Timeout(TransformFailed):
    code = FailureCode.TIMEOUT


class MemoryLimit(TransformFailed):
    code = FailureCode.MEMORY_LIMIT


class CpuLimit(TransformFailed):
    code = FailureCode.CPU_LIMIT


class ProcessLimit(TransformFailed):
    code = FailureCode.PROCESS_LIMIT


class DescriptorLimit(TransformFailed):
    code = FailureCode.DESCRIPTOR_LIMIT


class FileSizeLimit(TransformFailed):
    code = FailureCode.FILE_SIZE_LIMIT


class DiskLimit(TransformFailed):
    code = FailureCode.DISK_LIMIT


class Killed(TransformFailed):
    code = FailureCode.KILLED


class Exited(TransformFailed):
    code = FailureCode.EXITED


class Cancelled(TransformFailed):
    code = FailureCode.CANCELLED


class InputUnavailable(TransformFailed):
    code = FailureCode.INPUT_UNAVAILABLE


class InputInvalid(TransformFailed):
    code = FailureCode.INPUT_INVALID


class OutputInvalid(TransformFailed):
    code = FailureCode.OUTPUT_INVALID


class OutputSchemaViolated(TransformFailed):
    code = FailureCode.OUTPUT_SCHEMA_VIOLATED


class OutputMissing(TransformFailed):
    code = FailureCode.OUTPUT_MISSING


class OutputUploadFailed(TransformFailed):
    code = FailureCode.OUTPUT_UPLOAD_FAILED


class ResultNotKept(TransformFailed):
    code = FailureCode.RESULT_NOT_KEPT


class GatewayDiskFailed(TransformFailed):
    code = FailureCode.GATEWAY_DISK_FAILED


class KernelStartFailed(TransformFailed):
    code = FailureCode.KERNEL_START_FAILED


class SandboxFailed(TransformFailed):
    code = FailureCode.SANDBOX_FAILED


class LauncherLost(TransformFailed):
    code = FailureCode.LAUNCHER_LOST


class ShuttingDown(TransformFailed):
    code = FailureCode.SHUTTING_DOWN


class QueueTimeout(TransformFailed):
    code = FailureCode.QUEUE_TIMEOUT


class GatewayRestarted(TransformFailed):
    code = FailureCode.GATEWAY_RESTARTED


class HostLost(TransformFailed):
    code = FailureCode.HOST_LOST


class Internal(TransformFailed):
    code = FailureCode.INTERNAL
