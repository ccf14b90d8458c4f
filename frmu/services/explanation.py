"""The reasons why each slice counts as it does: its observation, who proposed what, and what would be without it.

The explanation belongs to the state that is in force: the round that made it is run again, in process, on the shards
as they lie there, and must give its digest. So nothing has to be stored that an erasure would have to find, and what
is said is said of the records that remain. Only the history - what policies in training and earlier rounds thought of
a slice - comes from MLflow, as far as its runs are still there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from frmu.clients.tasks.explanation import ExplainSlices
from frmu.clients.tasks.importing import DescribeShard
from frmu.errors import RequestError, StoreError, TrackingUnavailableError, near_miss
from frmu.federation import Federation, in_order
from frmu.methods.analytic import sums_of
from frmu.methods.method import Round
from frmu.report.figures import influences_in
from frmu.report.plots import plot_explanation
from frmu.selection.network import Network, read_policy, shipped
from frmu.selection.observation import FEATURES
from frmu.services.session import SLICES, Session
from frmu.types import ClientState, State

__all__ = ["explain"]

ROUNDS = ("train", "erasure", "replay")  # the runs that keep what a round said
MOST = 30  # runs of each name that the history looks at


def explain(
    session: Session, client: str | None = None, slice_: str | None = None, picture: Path | None = None
) -> dict[str, Any]:
    """The account of every slice, or of those of one client, or of one key; plain JSON types.

    `picture` is a PNG to write. Raises `RequestError` for a client or a slice that the state does not know, and
    `StoreError` where the shards do not give the state that is in force.
    """
    if session.config.model.by_rounds:
        raise RequestError(
            'a module that is trained by rounds (model.kind = "rounds") counts every slice in full: there is '
            "nothing to explain"
        )
    state = session.state()
    chosen = _chosen(state, client, slice_)
    with _again(session, state) as (federation, done):
        influences = {one.name: one.influence for one in state.clients}
        names = tuple(sorted(influences))
        described = federation.run(DescribeShard(), on=names)
        share = session.config.model.share(sum(reply.record["splits"]["fit"] for reply in described))
        sums = sums_of(session.config, state.config, federation, names, state.outputs, share=share)
        work = ExplainSlices(state.outputs, sums.cohort, influences, share)
        accounts = {reply.client: reply.record for reply in in_order(federation.run(work, on=list(chosen)))}
    history = _history(session, chosen)
    told = {
        one.name: _client(one, done, accounts[one.name], chosen[one.name], history)
        for one in state.clients
        if one.name in chosen
    }
    if picture is not None:
        _draw(state, session.config.slice_by, told, picture)
    return {
        "state_digest": state.digest,
        "policy": state.policy,
        "features": list(FEATURES),
        "slice_by": session.config.slice_by,
        "clients": told,
        "history_from": {"policies": len(history.scores), "rounds": len(history.rounds)},
        "away": session.tracker.away or None,
        **({"picture": str(picture)} if picture is not None else {}),
    }


def _chosen(state: State, client: str | None, slice_: str | None) -> dict[str, list[str]]:
    """The slices that are asked for, by client, in order."""
    clients = {one.name: sorted(one.influence) for one in state.clients}
    if client is not None and client not in clients:
        raise RequestError(f'the state knows no client "{client}"{near_miss(client, clients)}')
    wanted = {client: clients[client]} if client is not None else clients
    if slice_ is None:
        return wanted
    found = {name: [slice_] for name, keys in wanted.items() if slice_ in keys}
    if not found:
        known = sorted({key for keys in wanted.values() for key in keys})
        where = f'client "{client}" has' if client is not None else "no client has"
        raise RequestError(
            f'{where} {"no" if client is not None else "a"} slice "{slice_}" that is fitted'
            f"{near_miss(slice_, known)}; there are {', '.join(known[:4])}{', ...' if len(known) > 4 else ''}"
        )
    return found


@contextmanager
def _again(session: Session, state: State) -> Iterator[tuple[Federation, Round]]:
    """The last round, run again beside the store, which stays as it is."""
    with session.sites.afresh() as federation:
        done = session.from_nothing.apply(federation, session.method.init(), _network(session, state))
        if done.state.digest != state.digest:
            raise StoreError(
                f"{session.workspace.shards}: the records there give the state {done.state.digest[:16]}, and in force "
                f"is {state.digest[:16]}: it was made of others, or on another kind of machine. Run `frmu train`, or "
                "finish the drain"
            )
        yield federation, done


def _network(session: Session, state: State) -> Network:
    """The policy that made the state, which need not be the newest."""
    if not state.policy or session.network().digest == state.policy:
        return session.network()
    for file in [*sorted(session.workspace.policies.glob("*.safetensors")), shipped()]:
        network = read_policy(file)
        if network.digest == state.policy and network.digest not in session.ledger.history.retired():
            return network
    raise StoreError(f"the policy {state.policy[:16]} that made the state is not here any more; run `frmu train`")


# -- what is told ---------------------------------------------------------------------------------------------


def _client(
    one: ClientState, done: Round, account: Mapping[str, Any], keys: Sequence[str], history: _History
) -> dict[str, Any]:
    record = done.records[one.name]
    losses = dict(sorted(record["losses"].items(), key=lambda pair: (pair[1], pair[0])))
    return {
        "attention": one.attention,
        "score": done.scores[one.name],
        "records": one.records,
        "validation_records": account["validation_records"],
        "chosen_by": one.chosen_by,
        "drawn_back": record.get("drawn_back", ""),
        "proposals": losses,
        "refits": record["refits"],
        "loss": account["loss"],
        "slices": {
            key: _slice(one, key, account, record, losses)
            | {"scores": history.of(history.scores, one.name, key), "rounds": history.of(history.rounds, one.name, key)}
            for key in keys
        },
    }


def _slice(
    one: ClientState, key: str, account: Mapping[str, Any], record: Mapping[str, Any], losses: Mapping[str, float]
) -> dict[str, Any]:
    found, now = account["slices"][key], account["loss"]
    change = {name: _percent(found[f"loss_{name}"], now) for name in ("without", "in_full")}
    return {
        "influence": one.influence[key],
        "records": found["records"],
        "features": dict(zip(FEATURES, found["features"], strict=bool(found["features"]))),
        "attention": record["slices"].get(key, {}).get("pool"),
        "loss_without": found["loss_without"],
        "loss_in_full": found["loss_in_full"],
        "without_percent": change["without"],
        "in_full_percent": change["in_full"],
        "why": _why(one, key, change, losses, record.get("drawn_back", "")),
    }


def _percent(loss: float | None, now: float | None) -> float | None:
    """The relative change of a loss, in percent."""
    return None if loss is None or now is None or now <= 0.0 else 100.0 * (loss / now - 1.0)


def _why(
    one: ClientState, key: str, change: Mapping[str, float | None], losses: Mapping[str, float], drawn_back: str
) -> str:
    """The account in a sentence or two."""
    influence = one.influence[key]
    word = "forgotten" if influence == 0.0 else "kept" if influence == 1.0 else f"attenuated to {influence:.2g}"
    if not losses:
        return f"{word}: nothing was weighed, for want of validation records or by policy.selector"
    said = [f'{word}, as "{one.chosen_by}" proposed']
    if one.chosen_by == "keep":
        said = [f"{word}: no proposal beat keeping everything by policy.margin"]
        if drawn_back:
            said = [f"{word}: what was proposed was drawn back, for {drawn_back}"]
    elif losses.get("keep"):
        gain = 100.0 * (1.0 - losses[one.chosen_by] / losses["keep"])
        said[0] += f", which is {gain:.2g} % better on validation than keeping everything"
    if (out := change["without"]) is not None and influence > 0.0:
        said.append(f"without it the loss would be {_amount(out)}")
    if (full := change["in_full"]) is not None and influence < 1.0:
        said.append(f"with it in full the loss would be {_amount(full)}")
    return "; ".join(said)


def _amount(percent: float) -> str:
    return "the same" if abs(percent) < 0.005 else f"{abs(percent):.2f} % {'higher' if percent > 0 else 'lower'}"


# -- history --------------------------------------------------------------------------------------------------


class _History:
    """The scores of policies in training, and decisions of rounds: a time and a number by client and slice each."""

    def __init__(self, scores: Sequence[tuple[str, Any]], rounds: Sequence[tuple[str, Any]]) -> None:
        self.scores, self.rounds = scores, rounds

    @staticmethod
    def of(documents: Sequence[tuple[str, Any]], client: str, key: str) -> list[list[Any]]:
        """The numbers of one slice with their times, oldest first."""
        found = [(time, by.get(client, {}).get(key)) for time, by in documents]
        return [[time, number] for time, number in found if number is not None]


def _history(session: Session, chosen: Mapping[str, Sequence[str]]) -> _History:
    """From MLflow: runs that an erasure removed tell nothing any more, and while it is away none does."""
    try:
        return _from_mlflow(session, chosen)
    except TrackingUnavailableError as error:
        session.tracker.leave(error)
        return _History((), ())


def _from_mlflow(session: Session, chosen: Mapping[str, Sequence[str]]) -> _History:
    policies = session.tracker.documents(("policy",), "scores.json", MOST)
    tables = session.tracker.documents(ROUNDS, SLICES, MOST)
    rounds = [(time, influences_in(table)) for time, table in tables if "columns" in table]  # earlier ones had none
    return _History([one for one in policies if set(one[1]) & set(chosen)], rounds)


# -- picture --------------------------------------------------------------------------------------------------


def _otherwise(one: Mapping[str, Any]) -> float | None:
    """Return what the other choice would change: leaving a slice out that counts, or counting one in full that does
    not."""
    change: float | None = one["without_percent" if one["influence"] > 0.0 else "in_full_percent"]
    return change


def _draw(state: State, by: str, told: Mapping[str, Any], path: Path) -> None:
    if path.suffix.lower() != ".png" or path.is_dir() or not path.absolute().parent.is_dir():
        raise RequestError(f"{path}: a picture is written as a .png file into a folder that is there")
    shown = [one for one in state.clients if one.name in told]
    changes = None
    if len(shown) == 1:
        slices = told[shown[0].name]["slices"]
        changes = {key: np.nan if (other := _otherwise(one)) is None else other for key, one in slices.items()}
    plot_explanation(shown, by, path, changes)
