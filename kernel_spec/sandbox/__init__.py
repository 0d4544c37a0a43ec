"""The sandbox of a kernel: one module a layer, a plan that says which, a probe that finds out what the host allows.

=================== ===================================== ====================================================
module              layer                                 put on by
=================== ===================================== ====================================================
identity            uid and gid of the seat               kernel, `confine`
rlimits             limits of each process, seat's mark   kernel, `confine` and `bound_memory`
no_new_privs        nothing gained by exec                kernel, `confine`
dumpable            closed to the same uid                kernel, `confine`; launcher and gateway for themselves
parent_death        dies with the launcher                kernel, `confine`
landlock            files, TCP, signals                   kernel, `confine`
seccomp             refused system calls                  kernel, `confine` and `seal`
network_policy      no answer from this machine           middle process and kernel; a process for each kernel
answer_filter       a fence around a TCP socket           the broker of `network_policy`
signed_peers        another one, where that is refused    the broker of `network_policy`
namespaces          user, mount, pid, net, ipc, uts       launcher and kernel, or middle process
private_root        the mount namespace's content         kernel or middle process; kernel, `confine`
cgroup              memory and processes of a seat        launcher
processes           finding and killing                   launcher
memory_watch        memory where there is no cgroup       launcher, on a timer
disk_quota          size of the seat directory            launcher, on a timer
descriptors         nothing inherited                     who forks
=================== ===================================== ====================================================
"""

from kernel_spec.sandbox.confine import confine
from kernel_spec.sandbox.errors import SandboxError
from kernel_spec.sandbox.inits import can_start_init, children_in, start_init
from kernel_spec.sandbox.namespaces import Entered, enter_directly, enter_namespaces
from kernel_spec.sandbox.paths import default_read_only_paths
from kernel_spec.sandbox.plan import LAYERS, Identity, SandboxPlan
from kernel_spec.sandbox.probe import probe
from kernel_spec.sandbox.report import LayerReport, Proof, Report, State, Tier
from kernel_spec.sandbox.rlimits import bound_memory, seat_mark
from kernel_spec.sandbox.seccomp import seal

__all__ = [
    "LAYERS",
    "Entered",
    "Identity",
    "LayerReport",
    "Proof",
    "Report",
    "SandboxError",
    "SandboxPlan",
    "State",
    "Tier",
    "bound_memory",
    "can_start_init",
    "children_in",
    "confine",
    "default_read_only_paths",
    "enter_directly",
    "enter_namespaces",
    "probe",
    "seal",
    "seat_mark",
    "start_init",
]
