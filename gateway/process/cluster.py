"""Make this gateway a member of a cluster. Without CLUSTER_URL nothing of a cluster is imported."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING

from gateway.core.settings import Settings
from gateway.jobs.delivery import Deliverer
from gateway.jobs.runner import JobRunner
from gateway.process.tls import members_context
from gateway.storage import KeptResultStore, ObjectClient
from gateway.storage.state_directory import StateDirectory

if TYPE_CHECKING:
    from gateway.cluster.runner import ClusterRunner


async def joined(
    settings: Settings,
    local: JobRunner | None,
    results: KeptResultStore,
    client: ObjectClient,
    tls: ssl.SSLContext | None,
    on_confirmed: Callable[[float], None],
) -> ClusterRunner:
    """Return the runner of a cluster, connected to its broker.

    Parameters
    ----------
    settings : Settings
        With ``cluster_url``.
    local : JobRunner or None
        The runner of this machine; None if it only accepts jobs.
    results : KeptResultStore
        Keeps results for which the request gives no URL.
    client : ObjectClient
        Sends requests to the storage.
    tls : ssl.SSLContext or None
        For ``tls://``.
    on_confirmed : callable
        Called with the seconds of each confirmed write of a lease.

    Raises
    ------
    BrokerMissing
        The broker cannot be used.
    """
    from gateway.cluster.broker import Broker
    from gateway.cluster.member import Member
    from gateway.cluster.no_machine import NoMachine
    from gateway.cluster.runner import ClusterRunner
    from gateway.storage.objects.parcel_client import ParcelClient
    from gateway.storage.parcels import Parcels

    me = Member.of(settings.state_dir)
    role = "host" if settings.runs_only else "member" if settings.slots else "acceptor"
    credentials = str(settings.cluster_credentials_file or "")
    broker = await Broker.connect(settings.cluster_url, me.name, role=role, credentials=credentials, tls=tls)
    state = StateDirectory(settings.state_dir, settings.min_free_disk_bytes)
    deliverer = Deliverer(settings, results, client)
    client.parcels = ParcelClient(settings.storage_stall_seconds, members_context(settings))
    parcels = Parcels(settings.cluster_advertise_url, settings.state_dir) if settings.cluster_advertise_url else None
    machine = local or NoMachine(results)
    return ClusterRunner(settings, me, machine, broker, deliverer, client, parcels, on_confirmed, state.check)
