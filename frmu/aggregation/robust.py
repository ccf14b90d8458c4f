"""The rivals of attention: aggregation that resists bad clients by comparing what they send.

They are measured beside attention (`frmu bench attention`) and steer no state. Each works on messages, one a client and
all of one shape, and what a message is matters, so there are two kinds. **Heads**: each client fits its own head, and
the server aggregates heads; for a squared loss this is the one-round algorithm of Yin et al. **Gradients**: in every
round each client sends its mean gradient at the current head, and the server aggregates gradients, as in both papers.
The step is Newton's, with the curvature of all clients together: a mean of gradients weighted by records then arrives
at the head of the federation's sums in one round, and a fault of labels leaves the curvature alone, so it favours the
rivals. All clients count alike, as in the papers, whatever their number of records.

(Coordinate median and trimmed mean: Yin, Chen, Kannan and Bartlett, "Byzantine-robust distributed learning: towards
optimal statistical rates", ICML 2018. Krum and multi-Krum: Blanchard, El Mhamdi, Guerraoui and Stainer, "Machine
learning with adversaries: Byzantine tolerant gradient descent", NeurIPS 2017.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from frmu.errors import ConfigError
from frmu.models.ridge import shrinkage, solve
from frmu.types import Float, Statistics

__all__ = [
    "Rule",
    "by_gradients",
    "by_heads",
    "coordinate_median",
    "gradient_cosine",
    "krum",
    "most_bad",
    "rivals",
    "trimmed_mean",
    "weighted",
]

Rule = Callable[[Float], Float]  # messages (clients, ...) -> one message (...)

ROUNDS, STEP = 30, 0.5  # of `by_gradients`
TEMPERATURE = 0.3  # of `gradient_cosine`


def weighted(fits: Sequence[Statistics], weights: Float, ridge: float) -> Float:
    """The head (d, outputs) of the clients' sums under weights (clients,): ones for n_k/N, zeros to leave out."""
    total = Statistics.total((fit.scaled(float(a)) for fit, a in zip(fits, weights, strict=True)), *fits[0].b.shape)
    return solve(total.G, total.b, ridge)


# -- rules over messages --------------------------------------------------------------------------------------


def coordinate_median(messages: Float) -> Float:
    """The median of each coordinate, (clients, ...) -> (...).

    >>> coordinate_median(np.array([[1.0, 5.0], [2.0, 6.0], [99.0, -99.0]])).tolist()
    [2.0, 5.0]
    """
    return np.asarray(np.median(messages, axis=0), dtype=np.float64)


def trimmed_mean(messages: Float, bad: int) -> Float:
    """The mean of each coordinate without its `bad` greatest and `bad` least, (clients, ...) -> (...).

    Raises `ConfigError` where nothing would be left.

    >>> trimmed_mean(np.array([[1.0], [2.0], [3.0], [99.0]]), bad=1).tolist()
    [2.5]
    """
    clients = len(messages)
    if not 0 <= 2 * bad < clients:
        raise ConfigError(f"bad must be at least 0 and below half of {clients} clients, got {bad}")
    return np.asarray(np.sort(messages, axis=0)[bad : clients - bad].mean(axis=0), dtype=np.float64)


def krum(messages: Float, bad: int, chosen: int = 1) -> Float:
    """The mean of the `chosen` messages that lie closest to their clients - bad - 2 nearest, (clients, ...) -> (...).

    One chosen is Krum, more is multi-Krum. Raises `ConfigError` unless clients >= 2 bad + 3 and chosen fits.

    >>> krum(np.array([[1.0], [1.1], [0.9], [1.3], [50.0]]), bad=1).tolist()
    [1.0]
    """
    clients = len(messages)
    if not 0 <= bad <= most_bad(clients) or not 1 <= chosen <= clients - bad:
        raise ConfigError(f"{clients} clients must be at least 2 bad + 3 and bad + chosen, got {bad=}, {chosen=}")
    flat = messages.reshape(clients, -1)
    products = flat @ flat.T
    squares = np.diagonal(products)
    distances = np.sort(squares[:, None] + squares[None, :] - 2.0 * products, axis=1)  # the first is to itself
    far = distances[:, 1 : clients - bad - 1].sum(axis=1)
    best = np.sort(np.argsort(far, kind="stable")[:chosen])
    return np.asarray(messages[best].mean(axis=0), dtype=np.float64)


def most_bad(clients: int) -> int:
    """Return how many bad clients Krum may be told of.

    >>> most_bad(10)
    3
    """
    return (clients - 3) // 2


# -- two kinds of messages ------------------------------------------------------------------------------------


def by_heads(fits: Sequence[Statistics], rules: Sequence[Rule], ridge: float) -> list[Float]:
    """One head (d, outputs) a rule, made of each client's own head."""
    messages = np.stack([solve(fit.G, fit.b, ridge) for fit in fits])
    return [rule(messages) for rule in rules]


def by_gradients(fits: Sequence[Statistics], rules: Sequence[Rule], ridge: float) -> list[Float]:
    """One head (d, outputs) a rule, made by `ROUNDS` damped Newton steps on the clients' mean gradients."""
    n = sum(fit.n for fit in fits)
    G = np.asarray(sum(fit.G for fit in fits) / n)
    shrink = shrinkage(np.diagonal(G), ridge)[:, None]
    inverse = solve(G, np.eye(len(G)), ridge)
    return [_descend(fits, rule, inverse, shrink) for rule in rules]


def _descend(fits: Sequence[Statistics], rule: Rule, inverse: Float, shrink: Float) -> Float:
    W = np.zeros_like(fits[0].b)
    for _ in range(ROUNDS):
        gradient = rule(np.stack([_gradient(W, fit) for fit in fits])) + shrink * W
        W = W - STEP * inverse @ gradient
    return W


def _gradient(W: Float, s: Statistics) -> Float:
    return np.asarray((s.G @ W - s.b) / s.n, dtype=np.float64)


# -- the attention that was not taken ---------------------------------------------------------------------------


def gradient_cosine(fits: Sequence[Statistics], validations: Sequence[Statistics], ridge: float) -> Float:
    """Weights (clients,), mean 1: a softmax of the cosine between a client's gradient and the validation gradient.

    The query is the median over clients of their mean validation gradients at the head of all sums. It mistakes a
    client that is different for one that is bad: that is what the counterfactual of `frmu.aggregation.attention` is
    there to avoid.
    """
    W = weighted(fits, np.ones(len(fits)), ridge)
    query = coordinate_median(np.stack([_gradient(W, validation) for validation in validations if validation.n]))
    cosines = np.array([_cosine(_gradient(W, fit), query) for fit in fits])
    raw = np.exp((cosines - cosines.max()) / TEMPERATURE)
    return np.asarray(raw / raw.mean(), dtype=np.float64)


def _cosine(a: Float, b: Float) -> float:
    return float(np.sum(a * b) / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-300))


def rivals(bad: int, clients: int) -> dict[str, Sequence[Rule]]:
    """The rivals by name, told how many clients are bad; Krum comes as one chosen and as many."""
    told = min(bad, most_bad(clients))
    return {
        "coordinate median": [coordinate_median],
        "trimmed mean": [partial(trimmed_mean, bad=bad)],
        "Krum": [partial(krum, bad=told), partial(krum, bad=told, chosen=clients - told)],
    }
