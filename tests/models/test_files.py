"""A frozen encoder that is a file: the net of the file to the last bit, none of its code, and the laws of erasing."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CONFIG, drain, homes, put, train
from safetensors.torch import save
from torch import nn

from frmu import api
from frmu.bench.encoder import Cnn
from frmu.cli import main
from frmu.config import Config, load
from frmu.config.files import Net
from frmu.errors import ConfigError, DataError
from frmu.models.encoders import blocks, encode, encoders, integers, layout, width
from frmu.models.files import NetEncoder
from frmu.nets import opened, run
from frmu.services.prediction import load_model
from frmu.storage.checkpoint import config_of, load_state
from frmu.types import Selection

BATCH, OUTPUTS = 1, 6


def exported(net: nn.Module, shape: tuple[int, ...] = (1, 8, 8), batch: int = BATCH) -> bytes:
    """A net in eval mode as `torch.export.save` writes it."""
    raw = io.BytesIO()
    torch.export.save(torch.export.export(net.eval(), (torch.zeros(batch, *shape),)), raw)
    return raw.getvalue()


def small(shape: tuple[int, int, int] = (1, 8, 8), outputs: int = OUTPUTS, seed: int = 0) -> Cnn:
    torch.manual_seed(seed)
    return Cnn(shape, outputs, (4, 5) if shape[1] > 2 else (4,))


def net_in(raw: bytes, name: str = "a.pt2", **declared: Any) -> Net:
    said = {"shape": (1, 8, 8), "outputs": OUTPUTS, "low": 0.0, "high": 1.0, "batch": BATCH, "architecture": None}
    return Net(name, "image", raw, **(said | declared))


class Wordy(nn.Module):
    """Most kinds of layers, and an addition in place, as in a residual net."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3, padding=1, stride=2), nn.BatchNorm2d(6)
        self.deep = nn.Conv2d(6, 6, 3, padding="same", groups=2)
        self.layer, self.out = nn.LayerNorm(6), nn.Linear(6, OUTPUTS)
        self.drop, self.act = nn.Dropout(0.3), nn.ReLU(inplace=True)
        self.query = nn.Parameter(torch.randn(1, 1, 6))
        nn.init.uniform_(self.norm.running_mean)  # type: ignore[arg-type]
        self.register_buffer("shift", torch.randn(6), persistent=False)

    def forward(self, x: Any) -> Any:
        x = self.act(self.norm(self.conv(x)))
        x += nn.functional.gelu(self.deep(x))
        x = self.layer(x.flatten(2).transpose(1, 2)) + self.shift
        some, rest = x.chunk(2, dim=1)
        x = torch.cat([some * 2, torch.tanh(rest)], dim=1)
        key = self.query.expand(x.shape[0], 1, 6)
        seen = nn.functional.scaled_dot_product_attention(key, x, x)
        return torch.sigmoid(self.out(self.drop(seen.squeeze(1) + x.mean(dim=1))))


@pytest.mark.parametrize("make", [small, Wordy], ids=["cnn", "wordy"])
def test_what_we_run_is_what_the_file_runs_bit_for_bit(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(1)
    raw, X = exported(make()), np.random.default_rng(0).uniform(-1, 1, (7, 64))
    found = run(net_in(raw), X)
    own = torch.export.load(io.BytesIO(raw)).module()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        for at in range(7):
            block = torch.from_numpy(X[at : at + BATCH].astype(np.float32)).reshape(BATCH, 1, 8, 8)
            assert own(block).numpy().tobytes() == found[at : at + BATCH].tobytes()
    torch.set_num_threads(threads)


def test_weights_alone_give_the_bits_of_the_graph() -> None:
    net, X = small(), np.random.default_rng(0).uniform(-1, 1, (20, 64))
    weights = save({name: one.detach() for name, one in net.state_dict().items()})
    alone = run(net_in(weights, "a.safetensors", architecture="cnn"), X)
    assert np.array_equal(alone, run(net_in(exported(net)), X))


def test_a_record_has_the_same_bits_wherever_it_stands() -> None:
    net, X = net_in(exported(small())), np.random.default_rng(0).uniform(-1, 1, (50, 64))
    order = np.random.default_rng(1).permutation(50)
    assert np.array_equal(run(net, X)[order], run(net, X[order]))
    assert np.array_equal(run(net, X)[7:8], run(net, X[7:8]))


class _Greatest(nn.Module):
    """Nothing in it is rounded, so no place can be in its bits."""

    def forward(self, x: Any) -> Any:
        return nn.functional.max_pool2d(x, 2).flatten(1)[:, :OUTPUTS]


def test_calls_of_many_give_the_same_where_nothing_depends_on_the_place() -> None:
    X = np.random.default_rng(0).uniform(-1, 1, (50, 64))
    many, one = (run(net_in(exported(_Greatest(), batch=batch), batch=batch), X) for batch in (16, 1))
    assert np.array_equal(many, one)


class _Mean(nn.Module):
    def forward(self, x: Any) -> Any:
        return (x - x.mean(dim=0, keepdim=True)).flatten(1)[:, :OUTPUTS]


def test_a_net_that_looks_at_the_whole_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"stands elsewhere in a batch.*model\.files\.image\.batch = 1"):
        opened(net_in(exported(_Mean(), batch=16), batch=16))
    assert run(net_in(exported(_Mean())), np.ones((3, 64))).tolist() == [[0.0] * OUTPUTS] * 3


# -- bad files ----------------------------------------------------------------------------------------------------


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Path]:
    """A file that unpickling would make."""
    sprung = tmp_path / "sprung"
    pickle.loads(pickle.dumps(_Bomb(sprung)))
    assert sprung.exists()
    sprung.unlink()  # it springs; now it must not
    yield sprung
    assert not sprung.exists()


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def changed(raw: bytes, change: Callable[[str, bytes], bytes | None]) -> bytes:
    """An archive with its members changed, and without those that come to nothing."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            content = change(info.filename.partition("/")[2], old.read(info))
            if content is not None:
                new.writestr(info.filename, content)
    return out.getvalue()


def edited(raw: bytes, member: str, edit: Callable[[Any], object]) -> bytes:
    """An archive with a JSON member edited."""

    def change(name: str, content: bytes) -> bytes:
        if name != member:
            return content
        found = json.loads(content)
        edit(found)
        return json.dumps(found).encode()

    return changed(raw, change)


def test_sample_inputs_are_never_unpickled(trap: Path) -> None:
    raw, X = exported(small()), np.ones((2, 64))
    bomb = pickle.dumps(_Bomb(trap))
    bad = changed(raw, lambda name, content: bomb if name.startswith("data/sample_inputs") else content)
    assert np.array_equal(run(net_in(bad), X), run(net_in(raw), X))


def test_a_pickled_weight_is_refused_unopened(trap: Path) -> None:
    bomb = pickle.dumps(_Bomb(trap))
    bad = edited(
        changed(exported(small()), lambda name, content: bomb if name.endswith("weight_0") else content),
        "data/weights/model_weights_config.json",
        lambda found: found["config"]["conv1.weight"].update(use_pickle=True),
    )
    with pytest.raises(ConfigError, match=r"a\.pt2: its weight conv1\.weight is pickled, and a pickle is a program"):
        opened(net_in(bad))


@pytest.mark.parametrize("name", ["a.pt2", "a.safetensors", "a.onnx"])
def test_a_pickle_in_the_place_of_a_file_is_refused_unread(trap: Path, name: str) -> None:
    declared = {"architecture": "cnn"} if name == "a.safetensors" else {}
    with pytest.raises(ConfigError, match=rf"{name}: is not a whole"):
        opened(net_in(pickle.dumps(_Bomb(trap)), name, **declared))


def node(found: Any, at: int = 0) -> Any:
    return found["graph_module"]["graph"]["nodes"][at]


EDITS: dict[str, tuple[Callable[[Any], object], str]] = {
    "an operator of torch that is not in the list": (
        lambda found: node(found).update(target="torch.ops.aten.from_file.default"),
        r"wants the operator torch\.ops\.aten\.from_file\.default, which is none of those",
    ),
    "a name that is no operator": (
        lambda found: node(found).update(target="os.system"),
        "wants the operator os.system, which is none of those",
    ),
    "a symbol for a size": (
        lambda found: node(found)["inputs"][3].update(arg={"as_sym_int": {"as_name": "__import__('os')"}}),
        "has sizes that are symbols; export it with fixed sizes",
    ),
    "an object for an argument": (
        lambda found: node(found)["inputs"][3].update(arg={"as_custom_obj": {"name": "x", "class_fqn": "os.system"}}),
        "gives an operator as_custom_obj; only tensors, numbers and text",
    ),
    "an argument of another name": (
        lambda found: node(found)["inputs"][3].update(name="padding_mode"),
        "an argument padding_mode that it has not",
    ),
    "a tensor that is not there": (
        lambda found: node(found, 1)["inputs"][0].update(arg={"as_tensor": {"name": "later"}}),
        "uses later before it is made",
    ),
    "a weight that is changed": (
        lambda found: node(found, 1).update(
            target="torch.ops.aten.relu_.default",
            inputs=[{"name": "self", "arg": {"as_tensor": {"name": "p_conv1_weight"}}, "kind": 1}],
        ),
        "changes its input or a weight; export the net with inplace=False",
    ),
    "another version": (lambda found: found["schema_version"].update(major=9), "is of version 9 of torch.export's"),
    "two inputs": (
        lambda found: found["graph_module"]["signature"]["input_specs"].append(
            {"user_input": {"arg": {"as_tensor": {"name": "y"}}}}
        ),
        "has 2 inputs and 1 outputs, and an encoder has one of each",
    ),
    "a tensor larger than may be": (
        lambda found: node(found, 1).update(
            target="torch.ops.aten.expand.default",
            inputs=[
                {"name": "self", "arg": {"as_tensor": {"name": "p_conv1_bias"}}, "kind": 1},
                {"name": "size", "arg": {"as_ints": [10**6, 10**6, 4]}, "kind": 1},
            ],
        ),
        "does not take .*entries within it",
    ),
}


@pytest.mark.parametrize("case", EDITS)
def test_what_a_graph_may_not_have_is_refused_in_a_sentence(case: str) -> None:
    edit, message = EDITS[case]
    with pytest.raises(ConfigError, match=rf"^a\.pt2: .*{message}") as refused:
        opened(net_in(edited(exported(small()), "models/model.json", edit)))
    assert "\n" not in str(refused.value)


def test_a_file_cut_off_anywhere_is_refused_in_a_sentence() -> None:
    raw = exported(small())
    weights = save({name: one.detach() for name, one in small().state_dict().items()})
    for at in (0, 1, 30, len(raw) // 3, len(raw) - 30, len(raw) - 1):
        with pytest.raises(ConfigError, match=r"^a\.pt2: (is not a whole file of torch\.export|holds no graph)"):
            opened(net_in(raw[:at]))
    for at in (0, 7, len(weights) // 2, len(weights) - 1):
        with pytest.raises(ConfigError, match=r"^a\.safetensors: is not a whole safetensors file"):
            opened(net_in(weights[:at], "a.safetensors", architecture="cnn"))


def test_what_would_unpack_to_more_is_refused() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("a/models/model.json", b"0" * 10**7)
    with pytest.raises(ConfigError, match="would unpack to more than the file"):
        opened(net_in(out.getvalue()))


def test_a_weight_of_another_size_or_kind_is_refused() -> None:
    raw = exported(small())
    cut = changed(raw, lambda name, content: content[:-4] if name.endswith("weight_0") else content)
    with pytest.raises(ConfigError, match="its weight p_conv1_weight is not whole"):
        opened(net_in(cut))
    with pytest.raises(ConfigError, match="is not float32; export the net in float32"):
        opened(net_in(_doubled(raw)))
    lacking = save({"conv1.weight": torch.zeros(4, 1, 3, 3), "out.weight": torch.zeros(2, 2)})
    with pytest.raises(ConfigError, match=r"lacks weight conv1\.bias; model\.files\.image\.architecture"):
        opened(net_in(lacking, "a.safetensors", architecture="cnn"))


def _doubled(raw: bytes) -> bytes:
    return edited(
        raw,
        "data/weights/model_weights_config.json",
        lambda found: found["config"]["conv1.weight"]["tensor_meta"].update(dtype=8),
    )


class _Learning(nn.Module):
    def forward(self, x: Any) -> Any:
        return nn.functional.dropout(x.flatten(1), 0.5, training=True)[:, :OUTPUTS]


def test_a_net_that_still_learns_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"dropout\.default still learns; call eval\(\)"):
        opened(net_in(exported(_Learning())))


def test_what_is_declared_must_be_so() -> None:
    raw = exported(small())
    with pytest.raises(ConfigError, match=r"gives \[1, 6\] .* must give float32 \[1, 7\]; mend model\.files\.image"):
        opened(net_in(raw, outputs=7))
    with pytest.raises(
        ConfigError, match=r"takes \[1, 1, 8, 8\], and model\.files\.image\.batch and \.shape say \[1, 1, 4, 16\]"
    ):
        opened(net_in(raw, shape=(1, 4, 16)))


class _Apart(nn.Module):
    def forward(self, x: Any) -> Any:
        return 1.0 / x.flatten(1)[:, :OUTPUTS]


def test_what_is_no_number_is_refused_with_the_file() -> None:
    encoder = NetEncoder(net_in(exported(_Apart())))
    assert encoder.grid(np.full((2, 64), 2.0)).tolist() == [[0] * OUTPUTS] * 2  # half of the range
    with pytest.raises(DataError, match=r"a\.pt2: gives NaN or infinity for 1 of 2 records"):
        encoder.grid(np.stack([np.ones(64), np.zeros(64)]))


# -- ONNX ---------------------------------------------------------------------------------------------------------


def field(number: int, value: int | bytes) -> bytes:
    """A field of a protocol buffer."""

    def varint(whole: int) -> bytes:
        return bytes([whole & 127 | 128]) + varint(whole >> 7) if whole > 127 else bytes([whole])

    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def onnx(nodes: bytes = b"", weight: bytes = b"", domain: bytes = b"", more: bytes = b"") -> bytes:
    """Write relu(x W) in ONNX, x (1, 4): what the library of that name would do."""
    W = np.arange(24, dtype="<f4").reshape(4, 6) / 24.0
    tensor = field(1, 4) + field(1, 6) + field(2, 1) + field(8, b"W") + (weight or field(9, W.tobytes()))
    gemm = (
        field(1, b"x") + field(1, b"W") + field(2, b"h") + field(4, b"MatMul") + (field(7, domain) if domain else b"")
    )
    relu = field(1, b"h") + field(2, b"y") + field(4, b"Relu")

    def info(name: bytes, *sizes: int) -> bytes:
        shape = b"".join(field(1, field(1, size)) for size in sizes)
        return field(1, name) + field(2, field(1, field(1, 1) + field(2, shape)))

    graph = field(1, gemm) + field(1, relu) + nodes + field(2, b"g") + field(5, tensor)
    graph += field(11, info(b"x", BATCH, 4)) + field(12, info(b"y", BATCH, 6))
    opset = field(8, field(1, b"") + field(2, 17))
    return field(1, 8) + field(7, graph) + opset + more


def onnx_net(raw: bytes, **declared: Any) -> Net:
    return net_in(raw, "a.onnx", shape=(4,), **declared)


def test_onnx_gives_what_it_says_and_is_refused_in_a_sentence() -> None:
    pytest.importorskip("onnxruntime")
    X = np.random.default_rng(0).uniform(-1, 1, (20, 4))
    W = np.arange(24).reshape(4, 6) / 24.0
    assert np.allclose(run(onnx_net(onnx()), X), np.maximum(X @ W, 0.0), atol=1e-6)
    with pytest.raises(ConfigError, match=r"gives \[1, 6\]"):
        opened(onnx_net(onnx(), outputs=5))
    with pytest.raises(ConfigError, match=r"does not take \[1, 5\]"):
        opened(net_in(onnx(), "a.onnx", shape=(5,)))
    with pytest.raises(ConfigError, match=r"a\.onnx: is not a whole ONNX file"):
        opened(onnx_net(onnx(nodes=field(1, field(4, b"NoSuchThing") + field(2, b"z")))))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (onnx()[:-9], "is not a whole ONNX file"),
        (onnx(domain=b"com.trap"), "operators of the domain com.trap"),
        (onnx(more=field(8, field(1, b"com.microsoft"))), "operators of the domain com.microsoft"),
        (onnx(more=field(25, b"")), "functions of its own"),
        (onnx(weight=field(13, field(1, b"location") + field(2, b"/etc/passwd"))), "weights that lie in other files"),
        (onnx(weight=field(14, 1)), "weights that lie in other files"),
        (onnx(nodes=field(1, field(4, b"RandomNormal"))), "draws at random"),
        (onnx(nodes=field(1, field(4, b"If") + field(5, field(6, b"")))), "a graph within a graph"),
        (onnx(nodes=field(15, b"")), "sparse weights"),
    ],
)
def test_an_onnx_file_that_wants_more_than_itself_is_refused(raw: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^a\.onnx: .*{message}"):
        opened(onnx_net(raw))


# -- a federation -------------------------------------------------------------------------------------------------

WEATHER = "[model.files.weather]\noutputs = 6\nrange = [0.0, 1.0]\nshape = [1, 2, 2]\n"
FROZEN = CONFIG + 'encoders = { weather = "weather.pt2" }\n' + WEATHER
LEARNED = CONFIG.replace('encoder = "relu"\n', "").replace("features = 8", "features = 64\nlayers = 1\nbins = 0") + (
    'encoders = { weather = "weather.pt2" }\n' + WEATHER
)


@pytest.fixture(scope="module")
def weather() -> bytes:
    """A net of the weather: two numbers, a lag, and if there is one."""
    return exported(small((1, 2, 2)), (1, 2, 2))


def place(folder: Path, raw: bytes, table: pd.DataFrame, text: str = FROZEN, file: str = "weather.pt2") -> Config:
    """A data set, its encoder and its config, loaded."""
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(raw)
    return put(folder, table, text)


def test_a_record_that_lacks_the_modality_gives_nothing_and_others_what_the_net_says(
    tmp_path: Path, weather: bytes
) -> None:
    config = place(tmp_path, weather, homes(1, 20))
    by, block = encoders(config), blocks(config)["weather"]
    assert block.stop - block.start == OUTPUTS + 1
    X = np.random.default_rng(0).uniform(-1, 1, (5, 4))
    there = np.array([1.0, 1.0, 0.0, 1.0, 0.0])
    given = {"calendar": np.ones((5, 3)), "weather": np.column_stack([X * there[:, None], there])}
    phi = encode(given, by)
    assert phi.shape[1] == width(config)
    phi = phi[:, block]
    said = run(config.net("weather"), X)
    assert np.allclose(phi[there == 1, :-1], np.clip(said, 0, 1)[there == 1], atol=0.5 / 255 + 1e-6)
    assert phi[:, -1].tolist() == there.tolist()
    assert not phi[there == 0].any()
    assert len(layout(config)["weather"].idle) == OUTPUTS + 1
    assert integers(config) == 1 + sum(len(one.idle) for one in layout(config).values())


@pytest.mark.parametrize("text", [FROZEN, LEARNED], ids=["frozen", "learned"])
def test_erased_is_never_had(tmp_path: Path, weather: bytes, text: str) -> None:
    table = homes(3, 120)
    config = place(tmp_path / "all", weather, table, text)
    trained = train(config)
    api.erase(config, Selection("subject", subject="p1"), "x")
    api.erase(config, Selection("client", client="home 2"), "x")
    drained = drain(config)
    gone = (table["person"] == "p1") | (table["home"] == "home 2")
    never = train(place(tmp_path / "never", weather, table[~gone], text))
    assert drained["verified"]
    assert any("weather.pt2" in line for line in drained["receipts"][0]["not_covered"])
    assert trained["state_digest"] != drained["state_digest"] == never["state_digest"]


def test_the_fingerprint_knows_the_file_and_not_its_path(tmp_path: Path, weather: bytes) -> None:
    table = homes(1, 3)
    here = place(tmp_path / "a", weather, table)
    there = place(tmp_path / "b", weather, table, FROZEN.replace('"weather.pt2"', '"nets/w.pt2"'), "nets/w.pt2")
    other = place(tmp_path / "c", exported(small((1, 2, 2), seed=1), (1, 2, 2)), table)
    batch = place(tmp_path / "d", weather, table, FROZEN + "batch = 32\n")
    assert here.fingerprint() == there.fingerprint()
    assert len({here.fingerprint(), other.fingerprint(), batch.fingerprint()}) == 3
    digest = here.net("weather").header()["sha256"]
    named = place(tmp_path / "e", weather, table, FROZEN + f'sha256 = "{digest}"\n')
    assert named.fingerprint() == here.fingerprint()
    wrong = place(tmp_path / "f", weather, table, FROZEN + f'sha256 = "{"0" * 64}"\n')
    with pytest.raises(ConfigError, match=rf"its SHA-256 is {digest}, and model\.files\.weather\.sha256 is another"):
        wrong.fingerprint()


def test_a_state_stands_alone_when_the_file_is_gone(tmp_path: Path, weather: bytes) -> None:
    table = homes(2, 120)
    config = place(tmp_path, weather, table)
    digest = train(config)["state_digest"]
    state = config.folder / "state.safetensors"
    rows = tmp_path / "rows.parquet"
    table.to_parquet(rows)
    before = load_model(state).predict(rows)
    shutil.copy(state, tmp_path / "away.safetensors")
    (tmp_path / "weather.pt2").unlink()
    after = load_model(tmp_path / "away.safetensors")
    assert after.predict(rows).equals(before)
    assert after.state.digest == digest
    assert set(after.state.parameters) == {"W"} == set(load_state(state).parameters)  # type: ignore[union-attr]
    assert config_of(state).fingerprint() == config.fingerprint()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder, raw: (folder / "weather.pt2").unlink(), "weather.pt2: no such file; put it back"),
        (lambda folder, raw: (folder / "weather.pt2").write_bytes(raw[:1000]), "is not a whole file of torch.export"),
        (
            lambda folder, raw: (folder / "weather.pt2").write_bytes(exported(small())),
            "takes [1, 1, 8, 8], and model.files.weather.batch and .shape say [1, 1, 2, 2]",
        ),
    ],
    ids=["gone", "cut off", "of another size"],
)
def test_a_bad_file_is_one_sentence_and_exit_code_2(
    tmp_path: Path, weather: bytes, capsys: pytest.CaptureFixture[str], change: Callable[..., object], message: str
) -> None:
    place(tmp_path, weather, homes(1, 120))
    change(tmp_path, weather)
    with pytest.raises(SystemExit) as left:
        main(["train", str(tmp_path / "homes.toml"), "--address", "local"])
    said = capsys.readouterr()
    assert left.value.code == 2
    assert message in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert not (tmp_path / "homes.frmu").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("weather.pt2", "weather.pth", 'encoders: weather must be one of "relu".*or a file that ends in .pt2'),
        ("weather.pt2", "weather.safetensors", r"needs files\.weather\.architecture"),
        ("outputs = 6", 'outputs = 6\narchitecture = "cnn"', r"takes no files\.weather\.architecture"),
        ("[model.files.weather]", "[model.files.wether]", r"needs a table \[model\.files\.weather\]"),
        ("[0.0, 1.0]", "[1.0, 1.0]", r"range must be \[low, high\] with low < high"),
        ("outputs = 6", "outputs = 6\nbach = 16", 'bach: unknown key; did you mean "batch"'),
        ("[data]", "contents = 1\n[data]", "contents: unknown key"),
    ],
)
def test_a_config_that_cannot_be_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in FROZEN
    (tmp_path / "a.toml").write_text(FROZEN.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message):
        load(tmp_path / "a.toml")


def test_a_shape_holds_the_columns_of_the_modality(tmp_path: Path, weather: bytes) -> None:
    config = place(tmp_path, weather, homes(1, 3), FROZEN.replace("[1, 2, 2]", "[1, 2, 3]"))
    with pytest.raises(ConfigError, match="must hold the 4 scaled columns of the modality"):
        config.net("weather")
