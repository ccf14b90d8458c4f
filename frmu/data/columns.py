"""The names that columns have inside frmu, whatever the user calls them."""

from __future__ import annotations

__all__ = ["CLIENT", "FILE", "PRIVATE", "RECORD", "ROW", "SLICE", "SUBJECT", "TARGET", "TIME"]


RECORD, CLIENT, SUBJECT, TIME, TARGET, SLICE = "#record", "#client", "#subject", "#time", "#target", "#slice"


PRIVATE = "#private"


ROW, FILE = "#row", "#file"
