"""The training of a policy on a federation's own clients: from where it was killed, and into force only if better.

A policy carries traces of the records that it learned from. So what it learned from goes with it (its lineage), a
training that an erasure has overtaken is not gone on with, and one that is not put in force is not kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frmu.errors import ClientsUnavailableError, FederationError, PolicyError, RequestError
from frmu.selection.network import Network, write_policy
from frmu.selection.scores import below
from frmu.services.session import Session
from frmu.storage.atomic import put_in_place
from frmu.tracking.tracker import Run

if TYPE_CHECKING:
    from frmu.policy.checkpoint import Progress
    from frmu.policy.compare import Comparison
    from frmu.policy.env import EnvContext
    from frmu.policy.training import Learned

__all__ = ["learn"]

_SETTINGS = {
    "algorithm",
    "steps",
    "rounds",
    "forget_penalty",
    "samples",
    "federated",
    "beta",
    "seed",
}  # by which a training is the same


def learn(
    session: Session, iterations: int | None = None, start: str = "current", resume: bool | None = None,
    adopt: str = "better",
) -> dict[str, Any]:  # fmt: skip
    """Train the slice policy with RLlib on this federation's clients, and put it in force here if it is better.

    `start` is "current" (go on from the policy in force) or "scratch". A training that was interrupted is gone on
    with where it was one of the same settings; with `resume` it must be (`PolicyError`), with False it never is.

    Where the trained policy is not ahead of the one in force on rehearsals, by more than noise (`frmu.policy.compare`),
    that one stays, and the trained one is let go; with `adopt` "always" it takes its place whatever comes out.
    The clients of a session in process are stepped from here, by RLlib, for which the program must have connected to
    Ray (`frmu.runtime.connect.cluster`); else a `RequestError` says so.
    """
    from frmu.policy.training import context_of, runners_of, train_policy
    from frmu.runtime.connect import connected

    in_process = session.address == "local"
    if in_process and not connected():
        raise RequestError("a policy is trained by RLlib on Ray; leave out --address local")
    policy = session.config.policy.model_copy(update={"env_runners": 0} if in_process else {})
    state = session.state()
    learners = [client.name for client in state.clients]
    runners_of(policy, len(learners))  # before a host is started for those who have no room
    progress, lineage = _progress(session, start, resume, learners)
    parent = session.network() if start == "current" and progress is None else None
    if progress is None:
        lineage = _lineage(session, start, parent, learners)
    federation = session.sites.federation(session.sites.locations_of(learners, session.sites.look()))
    session.deliver()
    with session.run("policy", session.holds(lineage["clients"])) as run:
        session.ledger.note("learned", {"run": run.id, "clients": session.owners(lineage["clients"])})
        resumed = {"frmu.resumed": lineage["run"]} if progress is not None else {}
        run.tags({"frmu.parent": lineage["parent"] or "scratch", **resumed})
        context, slices = context_of(
            session.config, federation, {client.name: client.attention for client in state.clients}
        )
        learned = train_policy(
            policy, [(context, slices)], parent, iterations,
            on_iteration=lambda number, metrics: run.metrics(metrics, number), progress=progress,
            keep=lambda now: _keep(session, now, lineage | {"run": run.id}), deadline=session.config.rules.deadline,
            scratch=lineage["parent"] is None,
        )  # fmt: skip
        try:
            trained, adopted, compared = _put_in_force(session, context, learned, lineage, adopt)
        except ClientsUnavailableError as gone:
            from frmu.policy.trainer import RESUME

            raise FederationError(f"the trained policy cannot be compared yet: {gone}. {RESUME}") from None
        summary = {
            "policy": session.network().digest,
            "trained": trained.digest,
            "adopted": adopted,
            "compared": asdict(compared),
            "parent": lineage["parent"],
            "resumed_at": progress.iterations if progress is not None else 0,
            "federated": session.config.policy.federated,
            "theta": session.config.policy.theta,
            "below_theta": below(learned.scores, session.config.policy.theta),
            **_course(learned),
            "slices_left_out": dict(context.left_out),
            "run_id": run.id,
        }
        _log(session, run, learned, summary)
    return summary | {"scores": learned.scores} | session.waiting()


def _put_in_force(
    session: Session, context: EnvContext, learned: Learned, lineage: Mapping[str, Any], adopt: str
) -> tuple[Network, bool, Comparison]:
    """The trained policy, whether it is in force now, and how it compared with the one that was."""
    from frmu.policy.compare import compare
    from frmu.policy.training import MOST

    card = {key: lineage[key] for key in ("clients", "parent", "seed")} | {"iterations": learned.iterations}
    file = session.workspace.scratch / "policy.safetensors"
    trained, before = write_policy(learned.weights, card, file), session.network()
    compared = compare(context, before, trained, MOST)
    adopted = compared.better(session.config.policy.significance) or adopt == "always"
    if adopted:
        put_in_place(file, _next_policy(session.workspace.policies))
    else:
        file.unlink()
    session.workspace.training.unlink(missing_ok=True)
    return trained, adopted, compared


def _course(learned: Learned) -> dict[str, Any]:
    """Return how the training went."""
    first, last = learned.history[0], learned.history[-1]
    return {
        "iterations": learned.iterations,
        "env_steps": learned.env_steps,
        "env_runners": learned.env_runners,
        "gain_first": first["gain"],
        "gain_last": last["gain"],
        "td_error": last["td_error"],
        "evaluation_gain": last.get("evaluation_gain"),
        "seconds": round(learned.seconds, 3),
    }


def _log(session: Session, run: Run, learned: Learned, summary: Mapping[str, Any]) -> None:
    named = {"policy": summary["policy"], "trained": summary["trained"], "adopted": str(summary["adopted"])}
    run.tags({f"frmu.{name}": value for name, value in named.items()})
    run.metrics({f"compared/{name}": value for name, value in summary["compared"].items()})
    settings = {"algorithm", "seed", "steps", "rounds", "samples", "federated"}
    run.params(session.config.policy.model_dump(include=settings) | {"env_runners": learned.env_runners})
    run.json({name: value for name, value in summary.items() if name != "slices_left_out"}, "summary.json")
    run.json(learned.scores, "scores.json")


# -- what is gone on with -------------------------------------------------------------------------------------


def _lineage(session: Session, start: str, parent: Network | None, learners: Sequence[str]) -> dict[str, Any]:
    """Return what a policy learned from, and what must be the same where its training is gone on with."""
    inherited = parent.lineage.get("clients", []) if parent is not None else []
    clients = sorted({*learners, *inherited})
    return {
        "clients": clients,
        # Policies that are stored have a lineage with this key, so the word stays.
        "buried": _tombstoned(session, clients),
        "parent": parent.digest if parent is not None else None,
        "seed": session.config.policy.seed,
        **_same(session, start, learners),
    }


def _same(session: Session, start: str, learners: Sequence[str]) -> dict[str, Any]:
    return {
        "start": start,
        "settings": session.config.policy.model_dump(include=_SETTINGS),
        "config": session.config.fingerprint(),
        "learners": sorted(learners),
    }


def _tombstoned(session: Session, clients: Sequence[str]) -> int:
    return sum(len(names) for names in session.ledger.tombstones(clients, begun=True).values())


def _keep(session: Session, progress: Progress, lineage: Mapping[str, Any]) -> None:
    from frmu.policy.checkpoint import write_progress

    write_progress(progress, lineage, session.workspace.training, session.workspace.scratch)


def _progress(
    session: Session, start: str, resume: bool | None, learners: Sequence[str]
) -> tuple[Progress | None, dict[str, Any]]:
    """The training to go on with, and its lineage; None where there is none, or it is not wanted."""
    from frmu.policy.checkpoint import read_progress

    path = session.workspace.training
    if resume is False:
        return None, {}
    if not path.exists():
        if resume:
            raise PolicyError(
                f"{path}: no training to resume: none was interrupted, or an erasure retired it; leave out --resume"
            )
        return None, {}
    progress, lineage = read_progress(path)
    if lineage.get("buried") != _tombstoned(session, lineage["clients"]):
        # A drain deletes it with what it learned from; this one was put back.
        raise PolicyError(f"{path}: learned from records that have been erased since, and was put back; remove it")
    same = _same(session, start, learners)
    if changed := [name for name, value in same.items() if lineage.get(name) != value]:
        if resume:
            raise PolicyError(f"{path}: began with another {changed[0]}; leave out --resume to start anew")
        return None, {}
    return progress, lineage


def _next_policy(policies: Path) -> Path:
    there = [int(file.name.split("-")[0]) for file in policies.glob("*.safetensors")]
    return policies / f"{max(there, default=0) + 1:05d}-policy.safetensors"
