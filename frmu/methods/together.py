"""A second pass: what clients would gain if all of them moved, where records that had no say confirm it.

Alone a client of many moves the model by less than the noise of its own validation records, so it keeps what it
holds; where many sites are wrong at once, all keep, and all lose. So each client asks what the halves of its validation
records want of its slices, and the federation tries it as a whole: a model under what one half wants is judged by
the other half, at every site together.

The way half there must gain beyond noise. Then the whole way is taken if it gains more by both halves, else the half
of it. What is taken is the mean of what the two halves want. Only influences, and gains summed over stretches of
validation records, leave a client.

(Cross-fitting: Chernozhukov et al., "Double/debiased machine learning", The Econometrics Journal 2018.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from frmu.clients.tasks.crossfit import CrossFitInfluences, SendWeighted
from frmu.clients.tasks.guard import CompareHeads
from frmu.clients.tasks.selection import SelectInfluences
from frmu.federation import Reply, in_order
from frmu.methods.guard import Fitting, Records, below, influences_of
from frmu.models.features import Head, head_of
from frmu.models.grid import on_grid
from frmu.selection.significance import Paired, halves
from frmu.server.server import Aggregated

__all__ = ["together"]

CHOSEN = "together"
Wanted = Mapping[str, Mapping[str, Any]]  # what the halves of clients want, by client


@dataclass(frozen=True, slots=True)
class _Trial:
    """The judgement of each half on a step that the other wants: gains a record, and the chance that noise does it."""

    gains: tuple[float, float]
    chance: float


def together(
    fitting: Fitting, judging: SelectInfluences, now: Aggregated, records: Records, changed: list[Reply]
) -> tuple[Aggregated, Records, list[Reply]]:
    """The state, records and sums for attention: those that are given, or those of a joint step that gains.

    `judging` says beside which sums slices are judged; `now` is the state of `records`.
    """
    federation, names = fitting.federation, sorted(records)
    answers = in_order(federation.run(CrossFitInfluences(judging.outputs, judging.total, judging.share), on=names))
    wanted = {reply.client: reply.record for reply in answers if reply.record["halves"]}
    halfway = _tried(fitting, now, records, wanted, 0.5)
    if min(halfway.gains) <= 0.0 or halfway.chance > fitting.config.policy.significance:
        return now, _with_refits(records, wanted), changed
    whole = _tried(fitting, now, records, wanted, 1.0)
    share = 1.0 if all(more > less for more, less in zip(whole.gains, halfway.gains, strict=True)) else 0.5
    records = _with_refits(_moved(records, wanted, share, (0, 1)), wanted, halfway.chance)
    done, moved = _solved(fitting, records), sorted(name for name, one in records.items() if below(one))
    if fitting.config.attention.by_client:
        work = SendWeighted(fitting.outputs, {name: influences_of(records[name]) for name in moved})
        changed = in_order(federation.run(work, on=moved)) if moved else []
    return done, records, changed


def _tried(fitting: Fitting, now: Aggregated, records: Records, wanted: Wanted, share: float) -> _Trial:
    """A share of the way to what each half wants, judged by the other half."""
    found = []
    for half in (0, 1):
        done = _solved(fitting, _moved(records, wanted, share, (half,)))
        found.append(_judged(fitting, head_of(now.state), head_of(done.state), sorted(records), 1 - half))
    both = Paired(*(np.concatenate([getattr(one, name) for one in found]) for name in ("n", "gain")))
    return _Trial((found[0].mean, found[1].mean), both.chance)


def _solved(fitting: Fitting, records: Records) -> Aggregated:
    return fitting.solve(records, dict.fromkeys(records, 1.0), dict.fromkeys(records, 0.0))


def _judged(fitting: Fitting, before: Head, after: Head, on: Sequence[str], half: int) -> Paired:
    """The gains of a head over another on one half of the validation records of all."""
    replies = in_order(fitting.federation.run(CompareHeads(before, after, fitting.outputs), on=on))
    return Paired.of(
        {name: [x * (of == half) for x, of in zip(r.record[name], halves(len(r.record[name])), strict=True)]
         for name in ("n", "gain")}
        for r in replies
    )  # fmt: skip


def _moved(records: Records, wanted: Wanted, share: float, of: Sequence[int]) -> Records:
    """The records with influences moved a share of the way to the mean of what some halves want, on the grid."""
    moved = dict(records)
    for name, one in wanted.items():
        keys, here = zip(*records[name]["influence"].items(), strict=True)
        there = np.mean([[one["halves"][half][key] for key in keys] for half in of], axis=0)
        to = on_grid(np.array(here) + share * (there - np.array(here)))
        moved[name] = {**records[name], "influence": dict(zip(keys, to.tolist(), strict=True))}
    return moved


def _with_refits(records: Records, wanted: Wanted, chance: float | None = None) -> Records:
    """The records with the refits of the second pass, and with who chose, where it was taken at some chance."""
    found: Records = dict(records)
    for name, one in wanted.items():
        record = {**records[name], "refits": records[name]["refits"] + one["refits"]}
        if chance is not None:
            losses = {**record["losses"], CHOSEN: one["loss"]}
            record |= {"chosen_by": CHOSEN, "losses": losses, "chance": chance, "drawn_back": ""}
        found[name] = record
    return found
