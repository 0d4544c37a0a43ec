"""A member of a cluster can let its hosts ask for parcels, and for nothing else."""

from __future__ import annotations

import ssl

import pytest

from gateway.storage.objects.errors import StorageError
from gateway.storage.objects.parcel_client import ParcelClient, read_parcel

TOKEN = "a" * 43


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("http://internal/admin", "is not that of a parcel"),
        (f"http://internal/v1/parcels/{TOKEN}?x=1", "is not that of a parcel"),
        (f"http://internal/v1/parcels/{TOKEN}/more", "is not that of a parcel"),
        ("http://internal/v1/parcels/../../admin", "is not that of a parcel"),
        (f"http://169.254.169.254/v1/parcels/{TOKEN}", "is a link-local or metadata address"),
        (f"ftp://internal/v1/parcels/{TOKEN}", "is neither http nor https"),
        (f"http://127.0.0.1:9/v1/parcels/{TOKEN}", "could not be reached"),
    ],
)
async def test_requests_go_to_parcels_only(monkeypatch: pytest.MonkeyPatch, url: str, text: str) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:8")  # is not for members
    async with ParcelClient(5, ssl.create_default_context()) as client:
        with pytest.raises(StorageError, match=text) as refused:
            await read_parcel(client, url, 10)
    assert TOKEN not in str(refused.value)
    assert "127.0.0.1:8" not in str(refused.value)
