"""Every error frmu raises on purpose, as one tree.

    FrmuError                     exit code 2 on the command line
    +- ConfigError                the config file: unknown key, wrong type, impossible combination
    +- DataError                  the records: missing column, null, duplicate id, value out of its range
    +- RequestError               an erase request that cannot be taken: unknown subject, no such column
    +- LedgerError                the ledger: broken chain, another version, a wrong key
    +- PolicyError                a policy file: another feature version, truncated
    +- StoreError                 the working folder: in use, not writable, a checkpoint of another config
    +- FederationError            a client or the server did not answer
    |  +- ClientsUnavailableError        some clients did not answer in time; the others did
    |  +- RoundLostError          the server was lost, and what it held with it: the round begins again
    +- TrackingError              the MLflow tracking server cannot be reached
       +- TrackingUnavailableError               it does not answer now: nothing is wrong with the config

A message says what is wrong, where (file, client, row, key) and which knob to turn. Each error is built from
its message alone, so it survives pickling on its way back from a Ray actor.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

__all__ = [
    "ClientsUnavailableError",
    "ConfigError",
    "DataError",
    "FederationError",
    "FrmuError",
    "LedgerError",
    "PolicyError",
    "RequestError",
    "RoundLostError",
    "StoreError",
    "TrackingError",
    "TrackingUnavailableError",
    "near_miss",
]


class FrmuError(Exception):
    """An error of the world, not of frmu's code."""


class ConfigError(FrmuError):
    """The config is not valid."""


class DataError(FrmuError):
    """The records are not what the config says they are."""


class RequestError(FrmuError):
    """An erase request cannot be taken as it stands."""


class LedgerError(FrmuError):
    """The ledger is not whole, or is not ours."""


class PolicyError(FrmuError):
    """A policy file cannot be used."""


class StoreError(FrmuError):
    """The working folder cannot be used."""


class FederationError(FrmuError):
    """A client or the server did not answer."""


class ClientsUnavailableError(FederationError):
    """Some clients did not answer by the deadline; `reasons` says why, by client."""

    def __init__(self, message: str, reasons: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.reasons = dict(reasons or {})

    @classmethod
    def of(cls, reasons: Mapping[str, str], rule: str = "") -> ClientsUnavailableError:
        """The error that says who is away, why, and by which rule that ends what was begun.

        >>> print(ClientsUnavailableError.of({"a": "its host died"}))
        client a is away: its host died. Bring it back, raise rules.deadline, or let it go with `frmu client leave`
        """
        by: dict[str, list[str]] = {}
        for client, reason in sorted(reasons.items()):
            by.setdefault(reason, []).append(client)
        told = [
            f"client{'s' * (len(names) > 1)} {', '.join(names)} {'are' if len(names) > 1 else 'is'} away: {reason}"
            for reason, names in by.items()
        ]
        it = "them" if len(reasons) > 1 else "it"
        knob = f"Bring {it} back, raise rules.deadline, or let {it} go with `frmu client leave`"
        return cls(f"{'; '.join(told)}. {knob}{f'. {rule}' if rule else ''}", reasons)


class RoundLostError(FederationError):
    """The server was lost, and with it what it held of a round."""


class TrackingError(FrmuError):
    """The tracking server cannot be reached."""


class TrackingUnavailableError(TrackingError):
    """The tracking server does not answer now, and may later."""


def near_miss(name: str, known: Iterable[str]) -> str:
    """A clause that names the known word nearest to a mistyped one, or nothing.

    >>> near_miss("rigde", ["ridge", "seed"])
    '; did you mean "ridge"?'
    >>> near_miss("colour", ["ridge", "seed"])
    ''
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f'; did you mean "{close[0]}"?' if close else ""
