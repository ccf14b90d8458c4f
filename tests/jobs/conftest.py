"""One head for all tests of jobs and doors: it takes ten seconds to start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from heads import running_head


@pytest.fixture(scope="package")
def head() -> Iterator[dict[str, str]]:
    """The environment of a client of a head that demands its token."""
    with running_head() as environment:
        yield environment


@pytest.fixture(scope="package")
def open_head() -> Iterator[dict[str, str]]:
    """The environment of a client of a head that lets everybody in."""
    with running_head(RAY_AUTH_MODE="disabled") as environment:
        yield environment
