"""A pipeline changes what travels, and nothing of what is computed."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from conftest import homes, put

from frmu.clients.tasks.importing import CommitShard, StageShard
from frmu.federation import Payload
from frmu.methods.analytic import analytic
from frmu.runtime.local import LocalFederation
from frmu.wire.pipeline import IDENTITY, Pipeline


@dataclass(frozen=True, slots=True)
class Deflated:
    """Arrays as zlib packs them, each behind its type and shape."""

    def encode(self, payload: Payload) -> Payload:
        return {name: self._packed(np.asarray(array)) for name, array in payload.items()}

    @staticmethod
    def _packed(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        head = f"{array.dtype.str};{','.join(map(str, array.shape))}\n".encode()
        return np.frombuffer(head + zlib.compress(array.tobytes(), 9), dtype=np.uint8)

    def decode(self, payload: Payload) -> Mapping[str, np.ndarray[Any, Any]]:
        return {name: self._opened(array.tobytes()) for name, array in payload.items()}

    @staticmethod
    def _opened(raw: bytes) -> np.ndarray[Any, Any]:
        head, _, body = raw.partition(b"\n")
        kind, _, shape = head.decode().partition(";")
        sizes = [int(size) for size in shape.split(",") if size]
        return np.frombuffer(zlib.decompress(body), dtype=kind).reshape(sizes)


@dataclass(frozen=True, slots=True)
class Marked:
    """An array more, on top of whatever comes."""

    mark: str

    def encode(self, payload: Payload) -> Payload:
        return {**payload, self.mark: np.array([float(len(payload))])}

    def decode(self, payload: Payload) -> Payload:
        assert payload[self.mark] == [len(payload) - 1]
        return {name: array for name, array in payload.items() if name != self.mark}


def test_steps_are_undone_in_the_opposite_order() -> None:
    pipeline = Pipeline((Marked("first"), Marked("second"), Deflated()))
    payload = {"b": np.arange(6.0).reshape(2, 3)}
    sent = pipeline.encode(payload)
    assert sent is not None
    assert list(sent) == ["b", "first", "second"]
    back = pipeline.decode(sent)
    assert back is not None
    assert list(back) == ["b"]
    assert np.array_equal(back["b"], payload["b"])
    assert pipeline.encode(None) is pipeline.decode(None) is None


def test_bytes_are_those_that_travel_and_the_state_is_the_same(tmp_path: Path) -> None:
    config = put(tmp_path, homes(3))

    def trained(pipeline: Pipeline) -> tuple[str, int]:
        federation = LocalFederation(config, ["home 0", "home 1", "home 2"], tmp_path, pipeline=pipeline)
        list(federation.run(StageShard({}, b"k")))
        list(federation.run(CommitShard(True)))
        method = analytic(config)
        state = method.apply(federation, method.init(), None).state
        return state.digest, federation.traffic.up

    plain, deflated = trained(IDENTITY), trained(Pipeline((Deflated(),)))
    assert plain[0] == deflated[0]
    assert deflated[1] < plain[1]
