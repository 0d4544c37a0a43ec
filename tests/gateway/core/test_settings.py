"""Each limit is declared once; the settings of the gateway and of notebooks follow."""

from __future__ import annotations

from gateway.process.app import TransformGatewayApp
from kernel_spec.protocol.limits import LIMITS, Limits, notebook_limits
from kernel_spec.provisioner import TransformProvisioner


def test_every_limit_is_a_setting_of_jobs_and_of_notebooks() -> None:
    assert tuple(LIMITS) == Limits.__struct_fields__
    assert LIMITS.keys() <= TransformGatewayApp.class_own_traits(config=True).keys()
    assert LIMITS.keys() <= TransformProvisioner.class_own_traits(config=True).keys()


def test_a_notebook_has_the_limits_of_a_job_but_for_time() -> None:
    notebook, job = notebook_limits(), Limits()
    assert {name for name in LIMITS if getattr(notebook, name) != getattr(job, name)} == {"cpu_seconds"}
