"""The bundles of failed jobs: everything that is needed to run one again."""

from gateway.jobs.bundles.bundle import Bundle, BundledTable
from gateway.jobs.bundles.bundle_store import BundleStore

__all__ = ["Bundle", "BundleStore", "BundledTable"]
