"""Features are learned by a federation: one trip a layer, every choice on validation sums, inside the account.

    S_0 = I
    for t = 1 .. layers: S_t from the sums of layer t - 1        one trip each, at most 512 features
    which layer, with ramps or without                           one trip, in which only the last layer is new
    which width and ridge                                        one trip, and one over all records if there are many

Metrics are learned with every influence at one and by a constant ridge, so that they do not move when an influence or
a choice does; and from a cohort that a hash of record ids draws where there are many records. What is chosen after that
- layer, ramps, width, ridge - is chosen on validation sums: what is simple stands unless more is better by a margin, so
that a choice rests where an erasure moves a loss a little. Where there are too few validation records to choose by, the
simplest is taken, and that is said.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from frmu.clients.layers import Layer
from frmu.clients.tasks.layers import SumLayers
from frmu.config import Config
from frmu.federation import Federation, in_order
from frmu.models.features import LEAST, Features, bins_to_try, most_features
from frmu.server.layers import AddLayer, ChooseFeatures, Chosen, FitLayer
from frmu.types import Float, Sums

__all__ = ["LearnedFeatures", "learn_features"]

_log = logging.getLogger(__name__)
ENOUGH = 40  # validation records, to choose by
RIDGES = (1e-2, 1e-4, 1e-3, 1e-1, 1.0)  # the first where nothing can be chosen
METRIC_RIDGE = 1e-2
TRIED = 512  # features at most, while metrics are learned, and layers and ramps chosen
LAYERS = 2
A_COLUMN = 100  # records to fit, to learn a metric over it
BINS = 16
FINE_BINS = 256  # for prices and the like: values that come back
MANY = 32_768  # records to fit, to try those


@dataclass(frozen=True, slots=True)
class LearnedFeatures:
    """The features of a model, its ridge, the total of all records at full influence, and what was chosen.

    `metrics` are those of every layer up to the one that was chosen; `header` is what a state says of them.
    """

    features: Features
    ridge: float
    total: Sums = field(repr=False)
    metrics: Sequence[Float] = field(repr=False)
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
        self.fitted, model = fitted, config.model
        self.share = model.share(fitted)
        self.enough = ENOUGH if judging / 2**self.share >= ENOUGH else sys.maxsize
        self.width = most_features(config, fitted, len(outputs))
        self.first = Features(model.kind, self.width, model.bandwidth, 0, model.lattice)
        self.bins = bins_to_try(config, BINS, TRIED) if model.bins == "auto" else (model.bins,)
        # Metrics, and then layers and ramps, are tried on fewer features: the first of those that the model has.
        self.trial = replace(self.first, width=min(self.width, TRIED), bins=self.bins[-1])
        if self.enough > ENOUGH:
            _log.info(
                "%d validation records are too few to choose features by (%d are wanted), so each setting that is "
                "\"auto\" is at its default", judging, ENOUGH,
            )  # fmt: skip

    def all(self) -> LearnedFeatures:
        metrics = self._metrics()
        chosen = self._chosen([self.first, *(replace(self.first, metric=S) for S in metrics)])
        total = chosen.total if self.share == 0 else self._of_all(chosen.features)
        used = metrics[: chosen.layer]
        header = chosen.features.header | {
            "layer": len(used), "shape": ("diagonal" if self._diagonal else "full") if used else "",
            "ridge": float(chosen.ridge).hex(), "share": self.share, "metrics": chosen.features.key,
            "chosen": "validation" if self.enough == ENOUGH else "default",
        }  # fmt: skip
        _log.info("losses on validation: %s", dict(chosen.losses))
        return LearnedFeatures(chosen.features, chosen.ridge, total, used, header)

    @property
    def _diagonal(self) -> bool:
        return self.config.model.metric != "full"

    def _metrics(self) -> list[Float]:
        """The metrics of layers, one after the other: fewer where one would rest, or be of rank zero."""
        metrics: list[Float] = []
        for layer in range(1, self._layers() + 1):
            below = replace(self.trial, metric=metrics[-1] if metrics else None)
            asked = Layer(below, self.outputs, self.share, slopes=True)
            work = FitLayer(self.config, asked, METRIC_RIDGE, self._diagonal)
            metric: Float | None = self.federation.serve(work, self._sums((asked,)))
            if metric is None:
                _log.info("no input matters to the model in layer %d: its metric has rank zero, and rests", layer)
                break
            metrics.append(metric)
        return metrics

    def _layers(self) -> int:
        """The number of metrics to learn: as declared, or none where there are few records for the columns."""
        if self.config.model.layers != "auto":
            return self.config.model.layers
        columns = sum(self.config.columns(name) for name in self.config.data.modalities if self.config.learned(name))
        return LAYERS if self.fitted >= A_COLUMN * columns and self.enough == ENOUGH else 0

    def _chosen(self, features: Sequence[Features]) -> Chosen:
        """A layer, with ramps or without, and then a width and a ridge; what is simple is nested in what is not."""
        model = self.config.model
        tried = [replace(self.trial, metric=one.metric) for one in features]
        bins = self.bins
        if model.layers != "auto":
            tried = tried[-1:]
        if model.bins == "auto" and self.fitted >= MANY and bins_to_try(self.config, FINE_BINS, self.width)[-1]:
            tried.append(replace(self.trial, bins=FINE_BINS, metric=features[0].metric))
            bins = (*bins, FINE_BINS)
        first = self._choice(tried, bins, (self.trial.width,))
        at = first.layer if model.layers == "auto" else len(features) - 1
        layer = 0 if at >= len(features) else at  # fine ramps stand on the first layer
        widths = tuple(
            width for width in (self.width // 4, self.width // 2, self.width)
            if width >= LEAST and (model.features == "auto" or width == self.width)
        )  # fmt: skip
        if self.width == self.trial.width and widths in ((), (self.width,)):
            return replace(first, layer=layer)
        wide = replace(first.features, width=self.width)
        found = self._choice([wide], (wide.bins,), widths)
        return replace(found, layer=layer, losses={**first.losses, **found.losses})

    def _choice(self, features: Sequence[Features], bins: tuple[int, ...], widths: tuple[int, ...]) -> Chosen:
        ridges = RIDGES if self.config.model.ridge == "auto" else (self.config.model.ridge,)
        asked = tuple(Layer(one, self.outputs, self.share, slopes=False) for one in features)
        work = ChooseFeatures(self.config, asked, bins, widths, ridges, self.enough)
        found: Chosen = self.federation.serve(work, self._sums(asked))
        return found

    def _sums(self, layers: tuple[Layer, ...]) -> list[Any]:
        replies = in_order(self.federation.run(SumLayers(layers), on=self.names))
        return [reply for reply in replies if reply.payload is not None]

    def _of_all(self, features: Features) -> Sums:
        """The total of all records: what was learned and chosen on a cohort is fitted on everybody."""
        layer = Layer(features, self.outputs, 0, slopes=False)
        return self.federation.serve(AddLayer(self.config, layer), self._sums((layer,)))
