"""The limit of open files: raised as far as the host allows, and divided between jobs and connections."""

from __future__ import annotations

import resource
from dataclasses import replace

from gateway.core.errors import ConfigurationError
from gateway.core.settings import Settings

#: Enough for `MAX_CONNECTIONS` and 64 slots. Some hosts allow a billion, with which a program that closes all numbers
#: that it might have inherited takes minutes.
MOST_DESCRIPTORS = 65_536

#: A ready kernel has 8 in this process: pipes, sockets of ZeroMQ and their event descriptors (measured). The rest is
#: for its job's tables and output.
DESCRIPTORS_PER_KERNEL = 16

#: Store, log, listening sockets, libraries, and spare ones.
DESCRIPTORS_OF_GATEWAY = 96

FEWEST_CONNECTIONS = 16

#: The open output of a job that waits for the storage, its connection, and that of an older log.
DESCRIPTORS_PER_DELIVERY = 3

#: Of the descriptors that jobs and gateway leave, at most this part is for deliveries; the rest is for connections.
PART_OF_DELIVERIES = 0.25


def divide_descriptors(settings: Settings, kernels: int) -> Settings:
    """Raise the limit of open files to its hard limit, and fit the numbers of connections and deliveries to it.

    Called before the launcher starts, which inherits the limit; a job's own limit is DESCRIPTOR_LIMIT.

    Parameters
    ----------
    settings : Settings
        As configured.
    kernels : int
        Largest number of kernels at a time.

    Returns
    -------
    Settings
        With ``max_connections`` and ``max_deliveries`` that leave enough descriptors to the jobs.

    Raises
    ------
    ConfigurationError
        The limit is too low to run a job and be reached.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    limit = MOST_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft
    for_jobs = DESCRIPTORS_OF_GATEWAY + DESCRIPTORS_PER_KERNEL * kernels
    least = for_jobs + FEWEST_CONNECTIONS + DESCRIPTORS_PER_DELIVERY
    if limit < least:
        raise ConfigurationError(
            f"the limit of open files is {limit}, and a gateway with SLOTS={settings.slots} needs {least}: raise it "
            "(ulimit -n, LimitNOFILE= of systemd, --ulimit nofile= of Docker)"
        )
    left = limit - for_jobs
    deliveries = min(settings.max_deliveries, max(1, int(PART_OF_DELIVERIES * left / DESCRIPTORS_PER_DELIVERY)))
    connections = min(settings.max_connections, left - DESCRIPTORS_PER_DELIVERY * deliveries)
    return replace(settings, max_connections=connections, max_deliveries=deliveries)
