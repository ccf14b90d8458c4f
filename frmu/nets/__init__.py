"""Nets in files of the user's own, read without running anything that they bring along; torch lives here."""

from frmu.nets.net import opened, run

__all__ = ["opened", "run"]
