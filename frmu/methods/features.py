"""Features are learned by a federation: one trip a layer, every choice on validation sums, inside the account.

    S_0 = I                                                     candidates of kind and bandwidth, one trip
    for t = 1, 2, ...: S_t from the sums of layer t - 1         full and diagonal at first, one trip each layer
    all records under the layer that was best                   one trip: how many features, with or without ramps

Metrics are learned with every influence at one, so that they do not move when an influence does, and from a cohort
that a hash of record ids draws where there are many records. In their order of preference, what comes later must beat
what stands by a margin: a choice is a whole number, too, and rests where an erasure moves a loss a little. Where there
are too few validation records to choose by, the first of each list is taken, and that is said.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from frmu.clients.layers import Layer
from frmu.clients.tasks.layers import SumLayers
from frmu.config import Config
from frmu.federation import Federation, in_order
from frmu.models.features import LEAST, Features, most_features
from frmu.server.layers import ChooseFeatures, FitLayers, LayerFit, climb
from frmu.types import Float, Sums

__all__ = ["LearnedFeatures", "learn_features"]

_log = logging.getLogger(__name__)
ENOUGH = 40  # validation records, to choose by
RIDGES = (1e-3, 1e-2, 1e-4)
BANDWIDTHS = (1.0, 0.5)
SHAPES = ("full", "diagonal")
LAYERS = 3  # at most, where config and validation say nothing else
DEFAULT_LAYER = 1
METRIC_FEATURES = 512  # a modality, while metrics are learned
BINS = 16


@dataclass(frozen=True, slots=True)
class LearnedFeatures:
    """The features of a model, its ridge, the total of all records at full influence, and what was chosen.

    `metrics` are those of every layer that was used, by "LAYER.MODALITY"; `header` is what a state says of them.
    """

    features: Features
    ridge: float
    total: Sums = field(repr=False)
    metrics: Mapping[str, Float] = field(repr=False)
    header: Mapping[str, Any]


def learn_features(
    config: Config, federation: Federation, names: Sequence[str], outputs: tuple[str, ...], fitted: int, judging: int
) -> LearnedFeatures:
    """Learn features from the clients' records, of which so many are fitted and so many judge."""
    return _Learning(config, federation, tuple(names), outputs, fitted, judging).all()


class _Learning:
    def __init__(
        self, config: Config, federation: Federation, names: tuple[str, ...], outputs: tuple[str, ...], fitted: int,
        judging: int,
    ) -> None:  # fmt: skip
        self.config, self.federation, self.names, self.outputs = config, federation, names, outputs
        model = config.model
        self.share = max(0, math.ceil(math.log2(max(1, fitted) / model.cohort)))
        self.judged = judging > 0 and judging / 2**self.share >= ENOUGH
        self.most = most_features(config, fitted, len(outputs))
        self.ridges = RIDGES if model.ridge == "auto" else (model.ridge,)
        self.shapes = SHAPES if model.metric == "auto" else (model.metric,)
        if not self.judged and judging >= 0:
            _log.info(
                "%d validation records are too few to choose features by, so each setting that is \"auto\" is at its "
                "default; at least %d are wanted", judging, ENOUGH,
            )  # fmt: skip

    def all(self) -> LearnedFeatures:
        first, shape, metrics, losses = self._metrics()
        chosen = self._widths(first, metrics[-1] if metrics else {})
        used = {f"{at}.{name}": S for at, by in enumerate(metrics, start=1) for name, S in by.items()}
        header = chosen.features.header | {
            "layer": len(metrics), "shape": shape if metrics else "", "ridge": float(chosen.ridge).hex(),
            "share": self.share, "chosen": "validation" if self.judged else "default", "metrics": chosen.features.key,
        }  # fmt: skip
        _log.info("features: %s", header | {"losses": losses, "widths": dict(chosen.losses)})
        return LearnedFeatures(chosen.features, chosen.ridge, chosen.total, used, header)

    def _metrics(self) -> tuple[Features, str, list[Mapping[str, Float]], list[float]]:
        """The features of the first layer, the shape, and the metrics up to the layer that is best on validation."""
        wanted = self.config.model.layers
        most = LAYERS if wanted == "auto" else wanted
        starts = self._starts()
        fits = self._fit(starts, slopes=most > 0)
        at = climb([fit.loss for fit in fits]) if self.judged else 0
        first, fit = starts[at], fits[at]
        losses, shape = [fit.loss], self.shapes[0]
        metrics: list[Mapping[str, Float]] = []
        for layer in range(1, most + 1):
            shapes = [one for one in (self.shapes if layer == 1 else (shape,)) if fit.metrics.get(one)]
            tried = [self._under(first, fit.metrics[one]) for one in shapes]
            if not tried:
                _log.info("no input matters to the model in layer %d: the metric has rank zero, and rests", layer)
                break
            if metrics and all((tried[0].metrics[name] == metrics[-1][name]).all() for name in metrics[-1]):
                break  # it rests
            fits = self._fit(tried, slopes=layer < most)
            at = climb([one.loss for one in fits]) if self.judged else 0
            shape, fit = shapes[at], fits[at]
            metrics.append(tried[at].metrics)
            losses.append(fit.loss)
        best = len(metrics) if wanted != "auto" else climb(losses) if self.judged else min(DEFAULT_LAYER, len(metrics))
        return first, shape, metrics[:best], losses

    def _starts(self) -> list[Features]:
        model = self.config.model
        kinds = ("relu",) if model.kind == "auto" else (model.kind,)
        bandwidths = BANDWIDTHS if model.bandwidth == "auto" else (model.bandwidth,)
        width = min(self.most, METRIC_FEATURES)
        return [Features(kind, width, b, 0, model.lattice) for kind in kinds for b in bandwidths]

    @staticmethod
    def _under(first: Features, metrics: Mapping[str, Float] | None) -> Features:
        return Features(first.kind, first.width, first.bandwidth, first.bins, first.lattice, dict(metrics or {}))

    def _fit(self, features: Sequence[Features], slopes: bool) -> list[LayerFit]:
        layers = tuple(Layer(one, self.outputs, self.share, slopes) for one in features)
        replies = self._sums(layers)
        work = FitLayers(self.config, layers, self.ridges, self.shapes, ENOUGH if self.judged else 2**62)
        return list(self.federation.serve(work, replies))

    def _sums(self, layers: tuple[Layer, ...]) -> list[Any]:
        replies = in_order(self.federation.run(SumLayers(layers), on=self.names))
        return [reply for reply in replies if reply.payload is not None]

    def _widths(self, first: Features, metrics: Mapping[str, Float]) -> Any:
        """One trip over all records, at the most features there may be; fewer are nested in them."""
        model = self.config.model
        widths = [self.most] if model.features != "auto" else [
            width for width in (self.most // 4, self.most // 2, self.most) if width >= min(LEAST, self.most)
        ]  # fmt: skip
        bins = [0, BINS] if model.bins == "auto" else [model.bins]
        options = tuple(
            Features(first.kind, width, first.bandwidth, b, first.lattice, dict(metrics))
            for width in widths
            for b in bins
        )
        layer = Layer(options[-1], self.outputs, 0, slopes=False)
        enough = ENOUGH if self.judged else 2**62
        work = ChooseFeatures(self.config, layer, options, self.ridges, enough, len(options) - len(bins))
        return self.federation.serve(work, self._sums((layer,)))
