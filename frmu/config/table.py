"""The base of every table of the config, and durations as it writes them."""

from __future__ import annotations

import datetime as dt
import re

from pydantic import BaseModel, ConfigDict

__all__ = ["Table", "parse_duration"]
_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 604800}


def parse_duration(text: str) -> dt.timedelta:
    """A duration such as "30s", "30min", "12h", "1d" or "2w".

    >>> parse_duration("36h")
    datetime.timedelta(days=1, seconds=43200)
    """
    found = re.fullmatch(r"\s*(\d+)\s*(s|min|h|d|w)\s*", text)
    if not found or int(found[1]) == 0:
        raise ValueError(f'a duration must be a positive number and one of s, min, h, d, w (as "1d"), got "{text}"')
    if len(found[1]) > 6:
        raise ValueError(f'a duration must be of this world, got "{text}"')
    return dt.timedelta(seconds=int(found[1]) * _UNITS[found[2]])


class Table(BaseModel):
    """A table that takes no unknown key and no other type than it names, and never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
