"""The newest job of each request_id. A caller may use an id again, and callers with other tokens may use it too."""

from __future__ import annotations

import time
from dataclasses import dataclass

from gateway.core.job import RequestId, Scope
from gateway.jobs.store.record import JobRecord

#: How long a finished job is found by its request_id: a caller may use the id again, and must not see an old log then.
FOUND_BY_REQUEST_ID_SECONDS = 600.0

#: Ids in memory before the old ones are looked for.
SWEPT_IDS = 1000

#: The JSON type of an id counts: 7 is not "7".
_Key = tuple[type, RequestId]


@dataclass(frozen=True, slots=True)
class _Newest:
    """A job, and when it ended (`time.monotonic`; None while it is live)."""

    job_id: str
    ended: float | None


class RequestIds:
    """Finds a job by the caller's id and the name of the caller's token."""

    def __init__(self) -> None:
        self._newest: dict[_Key, dict[str | None, _Newest]] = {}
        self._sweep_at = SWEPT_IDS

    def begin(self, record: JobRecord) -> None:
        """Map the id to a live job."""
        self._put(record, _Newest(record.execution_id, None))

    def end(self, record: JobRecord, ended: float) -> None:
        """Record when a job ended, unless its id maps to another job."""
        known = self._get(record)
        if known is None or known.job_id == record.execution_id:
            self._put(record, _Newest(record.execution_id, ended))
        if len(self._newest) >= self._sweep_at:
            self._sweep()

    def restore(self, request_id: RequestId, token_name: str | None, job_id: str, ended: float) -> None:
        """Map the id to a job of an earlier process; called in the order in which the jobs were accepted."""
        self._newest.setdefault(_key(request_id), {})[token_name] = _Newest(job_id, ended)

    def forget(self, record: JobRecord) -> None:
        """Remove the id, unless it maps to another job."""
        known = self._get(record)
        if known is not None and known.job_id == record.execution_id:
            self._remove(_key(record.request_id), record.token_name)

    def find(self, request_id: RequestId, scope: Scope) -> str | None:
        """Return the id of the job that a caller's id maps to.

        Of the jobs of several tokens, a live one comes first, then one of the caller's own token, then the newest.

        Parameters
        ----------
        request_id : int or str
            The caller's id.
        scope : Scope
            The jobs that the caller may see.

        Returns
        -------
        str or None
            The gateway's own id; None if no job with this id is live or ended within the last ten minutes.
        """
        oldest = time.monotonic() - FOUND_BY_REQUEST_ID_SECONDS
        names = self._newest.get(_key(request_id), {})
        found = [
            (newest.ended is None, name == scope.token_name, newest.ended or 0.0, newest.job_id)
            for name, newest in names.items()
            if scope.includes(name) and (newest.ended is None or newest.ended >= oldest)
        ]
        return max(found)[-1] if found else None

    def _get(self, record: JobRecord) -> _Newest | None:
        return self._newest.get(_key(record.request_id), {}).get(record.token_name)

    def _put(self, record: JobRecord, newest: _Newest) -> None:
        self._newest.setdefault(_key(record.request_id), {})[record.token_name] = newest

    def _remove(self, key: _Key, name: str | None) -> None:
        del self._newest[key][name]
        if not self._newest[key]:
            del self._newest[key]

    def _sweep(self) -> None:
        """Forget the ids that are not found any more; the work of a sweep is spread over as many jobs."""
        oldest = time.monotonic() - FOUND_BY_REQUEST_ID_SECONDS
        for key, names in tuple(self._newest.items()):
            for name, newest in tuple(names.items()):
                if newest.ended is not None and newest.ended < oldest:
                    self._remove(key, name)
        self._sweep_at = max(SWEPT_IDS, 2 * len(self._newest))


def _key(request_id: RequestId) -> _Key:
    return type(request_id), request_id
