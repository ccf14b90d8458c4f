"""A federation of homes with the columns of a real table: gaps, categories, counts with a long tail."""

from __future__ import annotations

import numpy as np
import pandas as pd
from conftest import CONFIG, homes

__all__ = ["TABLES", "real"]

TABLES = (
    CONFIG.replace("[data.modalities]", 'missing = ["humidity", "colour", "visits"]\n\n[data.modalities]')
    .replace('"yesterday"]', '"yesterday", "visits"]\nhouse = ["colour", "city"]')
    .replace("humidity = [0, 100]", "humidity = [0, 100]\nvisits = [0, 5000]")
    .replace("load = [-5.0, 20.0]", "load = [-0.95, 20.0]")
    .replace(
        "[slices]",
        '[data.categories]\ncolour = ["red", "green"]\ncity = 8\n\n'
        '[data.transforms]\nload = "log1p"\nvisits = "log1p"\n\n[slices]',
    )
)


def real(clients: int = 4, seed: int = 0) -> pd.DataFrame:
    """Homes with gaps in three columns, a category that one home alone has, and cities."""
    table, rng = homes(clients, seed=seed), np.random.default_rng(seed + 1)
    n = len(table)
    colour = rng.choice(np.array(["red", "green", "blue", None], dtype=object), n)
    colour[(table.home == "home 1").to_numpy() & (colour == "blue")] = "black"
    return table.assign(
        load=table.load.clip(lower=-0.9),
        humidity=table.humidity.mask(rng.random(n) < 0.1),
        visits=pd.Series(np.floor(rng.lognormal(3, 1.5, n).clip(0, 5000))).mask(rng.random(n) < 0.2),
        colour=colour,
        city=[f"city {number}" for number in rng.integers(0, 40, n)],
    )
