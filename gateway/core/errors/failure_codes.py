"""Failures: the reasons for which an accepted job did not succeed, each with its stable code and HTTP status.

The text of a job's exception is made in `transform_shim.job.failure_text`, that of a limit in `gateway.local.verdict`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

#: The first public runner reported this for timeout and cancel; Metabase shows it as it is.
EXIT_CODE_KILLED = -1


class FailureCode(StrEnum):
    """Why a job that was accepted did not succeed."""

    USER_ERROR = "user_error"
    SYNTAX_ERROR = "syntax_error"
    INVALID_RETURN = "invalid_return"
    NO_TRANSFORM = "no_transform"
    MISSING_TABLE = "missing_table"
    TIMEOUT = "timeout"
    MEMORY_LIMIT = "memory_limit"
    CPU_LIMIT = "cpu_limit"
    PROCESS_LIMIT = "process_limit"
    DESCRIPTOR_LIMIT = "descriptor_limit"
    FILE_SIZE_LIMIT = "file_size_limit"
    DISK_LIMIT = "disk_limit"
    KILLED = "killed"
    EXITED = "exited"
    CANCELLED = "cancelled"
    INPUT_UNAVAILABLE = "input_unavailable"
    INPUT_INVALID = "input_invalid"
    OUTPUT_INVALID = "output_invalid"
    OUTPUT_SCHEMA_VIOLATED = "output_schema_violated"
    OUTPUT_MISSING = "output_missing"
    OUTPUT_UPLOAD_FAILED = "output_upload_failed"
    RESULT_NOT_KEPT = "result_not_kept"
    GATEWAY_DISK_FAILED = "gateway_disk_failed"
    KERNEL_START_FAILED = "kernel_start_failed"
    SANDBOX_FAILED = "sandbox_failed"
    LAUNCHER_LOST = "launcher_lost"
    SHUTTING_DOWN = "shutting_down"
    QUEUE_TIMEOUT = "queue_timeout"
    GATEWAY_RESTARTED = "gateway_restarted"
    HOST_LOST = "host_lost"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class FailureKind:
    """The properties of one failure code.

    Attributes
    ----------
    status : int
        HTTP status of the answer to ``execute``.
    retryable : bool
        Whether the same request may succeed when sent again, unless the cause of one failure says otherwise.
    exit_code : int
        Reported unless the job's own process had one.
    in_log : bool
        Whether the last line of the log is already the shim's own text. If not, the gateway adds one line to stderr,
        because Metabase shows the log and hides the error body.
    meaning, advice : str
        One sentence each, for the documentation's table of failures.
    """

    status: int
    retryable: bool
    exit_code: int
    in_log: bool
    meaning: str
    advice: str


def _kind(
    meaning: str, advice: str, *, in_log: bool = False, retryable: bool = False, exit_code: int = 1, status: int = 500
) -> FailureKind:
    return FailureKind(status, retryable, exit_code, in_log, meaning, advice)


FAILURES: dict[FailureCode, FailureKind] = {
    FailureCode.USER_ERROR: _kind(
        "The script or transform() raised an exception.", "Read the traceback; it starts at your own line.", in_log=True
    ),
    FailureCode.SYNTAX_ERROR: _kind(
        "The script or a library module is not valid Python.", "Correct the line that the log shows.", in_log=True
    ),
    FailureCode.INVALID_RETURN: _kind(
        "transform() returned a value that is not a table.", "Return a data frame.", in_log=True
    ),
    FailureCode.NO_TRANSFORM: _kind(
        "The script defines no transform() function.",
        "Define one; its parameters name the tables it needs.",
        in_log=True,
    ),
    FailureCode.MISSING_TABLE: _kind(
        "transform() asks for a table that the request does not contain.",
        "Select the table as a source, or rename the parameter.",
        in_log=True,
    ),
    FailureCode.TIMEOUT: _kind(
        "The job ran longer than its timeout.",
        "Do less, or raise the timeout of the request.",
        exit_code=EXIT_CODE_KILLED,
    ),
    FailureCode.MEMORY_LIMIT: _kind(
        "The job needed more memory than its limit.",
        "Select fewer columns or rows, use a lazy frame, or raise the memory limit.",
        exit_code=137,
    ),
    FailureCode.CPU_LIMIT: _kind(
        "The job used more CPU time than its limit.", "Do less, or raise the CPU limit.", exit_code=137
    ),
    FailureCode.PROCESS_LIMIT: _kind("The job started too many processes or threads.", "Start fewer."),
    FailureCode.DESCRIPTOR_LIMIT: _kind("The job opened too many files at once.", "Close files after use."),
    FailureCode.FILE_SIZE_LIMIT: _kind(
        "The job wrote a file larger than the limit.", "Write less, or raise the file size limit."
    ),
    FailureCode.DISK_LIMIT: _kind(
        "The job's directory grew beyond its quota.", "Write less, or raise the disk limit.", exit_code=137
    ),
    FailureCode.KILLED: _kind("A signal ended the kernel process.", "See which signal the message names."),
    FailureCode.EXITED: _kind(
        "The script ended its own process.", "Return from transform() instead of calling exit()."
    ),
    FailureCode.CANCELLED: _kind("The job was cancelled.", "Nothing to do.", exit_code=EXIT_CODE_KILLED),
    FailureCode.INPUT_UNAVAILABLE: _kind(
        "An input table could not be fetched.",
        "Check that the storage can be reached from the gateway and that the URL has not expired.",
        retryable=True,
    ),
    FailureCode.INPUT_INVALID: _kind(
        "An input table does not match its manifest.",
        "Check the table, line and column that the message names.",
        in_log=True,
    ),
    FailureCode.OUTPUT_INVALID: _kind(
        "The returned frame has a value or a column that cannot be written.",
        "Convert the column that the message names.",
        in_log=True,
    ),
    FailureCode.OUTPUT_SCHEMA_VIOLATED: _kind(
        "The returned frame breaks the output contract of the request or the script; nothing was published.",
        "Correct the rows that the message names, or the contract.",
        in_log=True,
    ),
    FailureCode.OUTPUT_MISSING: _kind(
        "The job claimed success, but its output was missing, not a regular file, or above the size limit.",
        "Do not change the files of the runner in the job's directory.",
    ),
    FailureCode.OUTPUT_UPLOAD_FAILED: _kind(
        "The result could not be delivered.",
        "Check that the storage can be reached from the gateway and accepts the presigned URLs.",
        retryable=True,
    ),
    FailureCode.RESULT_NOT_KEPT: _kind(
        "The request has no output_url, and the gateway could not keep the result.",
        "Raise RESULT_KEEP_BYTES if the result is too large; otherwise free space on the disk of STATE_DIR.",
        retryable=True,
    ),
    FailureCode.GATEWAY_DISK_FAILED: _kind(
        "The gateway could not use its own disk.",
        "Check that STATE_DIR exists, is writable for the gateway, and has free space and inodes.",
        retryable=True,
    ),
    FailureCode.KERNEL_START_FAILED: _kind(
        "No kernel could be started.", "See the gateway's log and `transform-gateway doctor`.", retryable=True
    ),
    FailureCode.SANDBOX_FAILED: _kind(
        "A layer of the sandbox could not be applied, so the job was not run.",
        "See `transform-gateway doctor`.",
        retryable=True,
    ),
    FailureCode.LAUNCHER_LOST: _kind(
        "The launcher of kernels ended, and the job's kernel with it.",
        "Send it again; the launcher restarts by itself.",
        retryable=True,
        exit_code=EXIT_CODE_KILLED,
        status=503,
    ),
    FailureCode.SHUTTING_DOWN: _kind(
        "The gateway was stopped while the job was waiting or running.",
        "Send it again.",
        retryable=True,
        exit_code=EXIT_CODE_KILLED,
        status=503,
    ),
    FailureCode.QUEUE_TIMEOUT: _kind(
        "The job waited longer for a slot than the queue timeout.",
        "Send it again later, or raise SLOTS.",
        retryable=True,
        exit_code=EXIT_CODE_KILLED,
        status=504,
    ),
    FailureCode.GATEWAY_RESTARTED: _kind(
        "The gateway ended while it had the job, and did not run it again.",
        "Send it again; the message says why it was not run again.",
        retryable=True,
        exit_code=EXIT_CODE_KILLED,
        status=503,
    ),
    FailureCode.HOST_LOST: _kind(
        "The member of the cluster that ran the job was lost, and the job was not run again.",
        "Send it again; the message says why it was not run again.",
        retryable=True,
        exit_code=EXIT_CODE_KILLED,
        status=503,
    ),
    FailureCode.INTERNAL: _kind(
        "The gateway itself failed.", "Look at the gateway's log; please report this fault.", retryable=True
    ),
}


class JobFailed(Exception):
    """Ends a job from inside the gateway, with a verdict.

    Parameters
    ----------
    code : FailureCode
        Why the job failed.
    message : str
        The message for the user, with the limit that was hit.
    retryable : bool, optional
        Whether the same request may succeed when sent again, where the cause is more specific than the failure code.
    """

    def __init__(self, code: FailureCode, message: str, *, retryable: bool | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.exit_code = FAILURES[code].exit_code
        self.retryable = FAILURES[code].retryable if retryable is None else retryable
