"""Changes that a script makes to its process, without harm to its result."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.transform_shim.jobs import Outcome

Job = Callable[..., Outcome]


@pytest.mark.parametrize("end", ["return pd.DataFrame({'v': [1]})", "raise ValueError('x')"])
def test_files_of_a_job_can_be_read_whatever_its_umask(job: Job, end: str) -> None:
    code = f"import os\nimport pandas as pd\nos.umask(0o077)\ndef transform():\n    os.umask(0o777)\n    {end}"
    outcome = job(code, before=lambda: os.umask(0o007))
    found = [path for path in outcome.folder.iterdir() if path.name in ("output", "manifest.json", "result.json")]
    assert len(found) == (3 if end.startswith("return") else 1)
    assert {path.name for path in found if not path.stat().st_mode & 0o040} == set()
