"""The line between MLflow being away and something being wrong.

Away is an http(s) server that refuses, resets or does not answer in time, or says 429, 500, 502, 503 or 504 and goes
on saying so: it may be back by itself, and who can wait may. Everything else is an error and told at once: a scheme
that MLflow does not know, a path that is no database, a certificate that is not trusted, any other answer; and a host
that nobody can resolve, unless the folder had an answer from it before - that is more often a typing error than an
outage.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from frmu.errors import TrackingError, TrackingUnavailableError

__all__ = ["check_uri", "public", "reaching"]


@contextmanager
def reaching(uri: str = "", known: bool = True) -> Iterator[None]:
    """Turn what MLflow raises into an error that names the knob: `TrackingUnavailableError` where a server is away.

    A host that cannot be resolved is away only where it is `known`.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        where = f" {public(uri)}" if uri else ""
        causes = list(_causes(error))
        told = causes[-1] if _lost(causes) else error
        reason = (str(told).strip() or type(told).__name__).splitlines()[0][:200]
        kind = TrackingUnavailableError if _away(causes, known) else TrackingError
        raise kind(f"the tracking store{where} does not answer: {public(reason)}; check store.tracking") from None


def _lost(causes: list[BaseException]) -> bool:
    from requests import exceptions as http

    lost = (http.ConnectionError, http.Timeout, http.RetryError, http.ChunkedEncodingError)
    return any(isinstance(each, lost) for each in causes)


def _away(causes: list[BaseException], known: bool) -> bool:
    from requests.exceptions import SSLError
    from urllib3.exceptions import NameResolutionError

    wrong = (SSLError,) if known else (SSLError, NameResolutionError)
    return _lost(causes) and not any(isinstance(each, wrong) for each in causes)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came of; MLflow names only some of its causes."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def check_uri(uri: str) -> None:
    """Raise `TrackingError` where a path cannot be a database: SQLAlchemy would try for two minutes."""
    path = Path(uri.removeprefix("sqlite:///").split("?")[0])
    if uri.startswith("sqlite:///") and path.is_dir():
        raise TrackingError(f"the tracking store {uri} is a folder, and must be a file; check store.tracking")


def public(uri: str) -> str:
    """A URI without its password.

    >>> public("https://ada:secret@runs.example/x")
    'https://***@runs.example/x'
    """
    return re.sub(r"//[^@/\s]*@", "//***@", uri)
