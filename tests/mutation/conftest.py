"""Not a module of tests: it runs in a process of its own, and needs frmu[mutation]."""

from __future__ import annotations

collect_ignore = ["room.py"]
