"""The sandbox of a kernel: one module for each layer, a plan, and a probe that finds what the host allows.

================================ ======================================= ==============================================
module                           layer                                   applied by
================================ ======================================= ==============================================
layers.identity                  uid and gid of the workspace            kernel, `confine`
layers.rlimits                   limits of each process, workspace mark  kernel, `confine` and `bound_memory`
layers.no_new_privs              no rights gained by exec                kernel, `confine`
layers.dumpable                  hidden from the same uid                kernel, `confine`; launcher and gateway
layers.parent_death              ends with the launcher                  kernel, `confine`
layers.landlock                  files, TCP, signals                     kernel, `confine`
layers.seccomp, seccomp_rules    refused system calls                    kernel, `confine` and `seal`
egress.socket_broker             network_policy: TCP, not this machine   broker, a process for each kernel
egress.bpf_filter                drops answers from denied addresses     broker, on each socket
egress.tcp_md5                   the same where bpf_filter is refused    broker, on each socket
namespaces.enter                 user, mount, net, ipc, uts namespaces   kernel or intermediate process
namespaces.pid_namespace_init    pid namespace and its init              launcher or intermediate process
namespaces.private_root          content of the mount namespace          kernel or intermediate process
accounting.cgroup, cgroup_tree   memory and processes of a workspace     launcher
accounting.processes             finds and kills processes               launcher
accounting.memory                memory_watch: memory without a cgroup   launcher, on a timer
accounting.disk                  disk_quota: size of the workspace       launcher, on a timer
================================ ======================================= ==============================================

`policy` holds the plan, `probe` the trials of each layer and the tier that they amount to.
"""

from kernel_spec.sandbox.apply import confine
from kernel_spec.sandbox.layers.readable_paths import default_read_only_paths
from kernel_spec.sandbox.layers.rlimits import bound_memory, workspace_mark
from kernel_spec.sandbox.layers.seccomp import seal
from kernel_spec.sandbox.namespaces.enter import Entered, enter_directly, enter_namespaces
from kernel_spec.sandbox.namespaces.pid_namespace_init import can_start_init, children_in, start_init
from kernel_spec.sandbox.policy.errors import SandboxError
from kernel_spec.sandbox.policy.plan import LAYERS, Identity, SandboxPlan

__all__ = [
    "LAYERS",
    "Entered",
    "Identity",
    "SandboxError",
    "SandboxPlan",
    "bound_memory",
    "can_start_init",
    "children_in",
    "confine",
    "default_read_only_paths",
    "enter_directly",
    "enter_namespaces",
    "seal",
    "start_init",
    "workspace_mark",
]
