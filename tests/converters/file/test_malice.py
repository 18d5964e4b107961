"""Known-bad content is named, in every container; what is only unusual is not called hostile. Nothing here is ever executed."""

from __future__ import annotations

import collections
import copyreg
import functools
import json
import logging
import pathlib
import pickle
import re
import tarfile
import tracemalloc
import uuid
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import quadrant_model, saved
from hostile_containers import BOMBS, HOSTILE, KERAS, LOADER, SYSTEM, calls, tarred, zipped
from torch import nn

from onnxspect.cli.main import run
from onnxspect.converters.errors import HostileError, OnnxspectError
from onnxspect.converters.file.dangerous_names import harm
from onnxspect.converters.file.malice import refuse_hostile
from onnxspect.converters.file.pickle_scan import looks_like_pickle, scan
from onnxspect.converters.sources.convert import convert


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_call_is_named_wherever_it_lies(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(HOSTILE[kind])
    with pytest.raises(HostileError) as caught:
        refuse_hostile(path)
    assert "hostile file: " in caught.value.message
    assert "posix.system" in caught.value.message
    assert "runs programs" in caught.value.message
    assert "was not run" in caught.value.message
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_a_wrong_check_sum_hides_nothing(tmp_path: Path) -> None:
    """PyTorch's reader does not look at check sums; Python's zipfile stops at a wrong one (a known way around scanners)."""
    data = bytearray(zipped(archive__data_dot_pkl=SYSTEM))
    for mark, at in ((b"PK\x03\x04", 14), (b"PK\x01\x02", 16)):
        place = data.index(mark) + at
        data[place : place + 4] = b"\x00\x00\x00\x01"
    path = tmp_path / "model.pt"
    path.write_bytes(bytes(data))
    with pytest.raises(HostileError, match=r"posix\.system"):
        refuse_hostile(path)


def test_an_encryption_flag_hides_nothing(tmp_path: Path) -> None:
    data = bytearray(zipped(archive__data_dot_pkl=SYSTEM))
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + at] |= 1
    path = tmp_path / "model.pt"
    path.write_bytes(bytes(data))
    with pytest.raises(HostileError, match=r"posix\.system"):
        refuse_hostile(path)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        *(("posix", "system"), ("nt", "system"), ("os", "popen"), ("subprocess", "Popen"), ("builtins", "eval")),
        *(("__builtin__", "exec"), ("builtins", "__import__"), ("builtins", "open"), ("runpy", "_run_code")),
        *(("webbrowser", "open"), ("socket", "create_connection"), ("urllib.request", "urlopen"), ("shutil", "rmtree")),
        *(
            ("pty", "spawn"),
            ("importlib", "import_module"),
            ("pickle", "loads"),
            ("torch", "load"),
            ("torch.hub", "load"),
        ),
        *(("numpy.testing._private.utils", "runstring"), ("ctypes", "CDLL"), ("operator", "methodcaller")),
        *(("torch.serialization", "os.system"), ("torch._inductor.codecache", "compile_file"), ("types", "CodeType")),
        *(
            ("pip._internal.cli.main", "main"),
            ("imaplib", "IMAP4_stream"),
            ("pydoc", "pipepager"),
            ("marshal", "loads"),
        ),
        *(("joblib", "load"), ("keras.utils", "get_file"), ("pathlib", "Path.write_text"), ("_io", "FileIO")),
    ],
)
def test_known_names(module: str, name: str) -> None:
    assert harm(module, name)
    for protocol in (0, 2, 4):
        found = scan(calls(module, name, protocol)).harmful
        assert [g.full for g in found] == [f"{module}.{name}"]


def test_a_name_out_of_the_memo() -> None:
    """As obfuscators write it: the two texts are put into the memo and fetched for STACK_GLOBAL."""
    program = b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94h\x00h\x01\x93\x8c\x02id\x85R."
    assert [g.full for g in scan(program).harmful] == ["posix.system"]
    computed = b"\x80\x04\x8c\x05posix\x85\x8c\x06system\x93\x8c\x02id\x85R."
    assert [g.full for g in scan(computed).harmful] == ["?.?"]


def test_weights_are_no_pickles() -> None:
    """Random bytes behind the pickles of an older file of PyTorch's are weights: nothing in them is hidden."""
    rng = np.random.default_rng(0)
    head = pickle.dumps({"a": 1}, 2)
    for _ in range(3000):
        assert scan(head + rng.bytes(60)).harmful == []
    assert scan(head + b"(N\x93" + bytes(40)).harmful == []


def test_getattr_beside_what_it_reaches_for() -> None:
    reach = b"cbuiltins\ngetattr\n(c__main__\nNet\nVsystem\ntR."
    assert [g.full for g in scan(reach).harmful] == ["builtins.getattr"]
    assert scan(reach.replace(b"system", b"Inner!")).harmful == []


class Colour(nn.Module):
    """A network of one's own, pickled whole."""

    class Inner:
        """A class in a class: protocol 2 pickles it by getattr."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        self.make = functools.partial(nn.Linear, bias=False)


def honest(protocol: int) -> bytes:
    things: list[Any] = [
        {"weights": np.arange(6.0).reshape(2, 3), "names": ["a", "os", "system"], "n": 2**80},
        collections.OrderedDict(a=np.float32(1), b=np.ma.masked_array([1, 2], [0, 1])),
        pathlib.PurePosixPath("runs/best.pt"),
        uuid.UUID(int=5),
        logging.getLogger("train"),
        functools.partial(np.mean, axis=0),
        copyreg,
        Colour.Inner,
        complex(1, 2),
        {1, 2},
        b"\x00\xff" * 10,
        slice(1, 2),
    ]
    return b"".join(pickle.dumps(t, protocol) for t in things if t is not copyreg)


@pytest.mark.parametrize("protocol", range(6))
def test_honest_pickles_are_followed_to_their_end(protocol: int) -> None:
    found = scan(honest(protocol))
    assert found.whole
    assert found.harmful == []
    assert looks_like_pickle(honest(protocol)[:4096])


@pytest.mark.parametrize("way", ["state dict", "older file", "module", "in bytes", "script", "joblib", "npz"])
def test_honest_files(way: str, tmp_path: Path) -> None:
    path, network = tmp_path / "model.bin", Colour()
    if way == "script":
        torch.jit.trace(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.zeros(1, 4)).save(str(path))
    elif way == "joblib":
        joblib = pytest.importorskip("joblib")
        joblib.dump({"a": np.random.default_rng(0).random(1000), "f": [1, 2]}, path, compress=("zlib", 3))
    elif way == "npz":
        np.savez(tmp_path / "model.npz", images=np.zeros((2, 3)), labels=np.arange(2))
        path = tmp_path / "model.npz"
    elif way == "in bytes":
        path.write_bytes(pickle.dumps(network.net))
    else:
        content: Any = network if way == "module" else network.state_dict()
        torch.save(content, path, _use_new_zipfile_serialization=way != "older file")
    refuse_hostile(path)


@pytest.mark.parametrize(
    ("name", "link"),
    [
        ("../../etc/cron.d/x", ""),
        ("/etc/passwd", ""),
        ("a/../../b", ""),
        ("C:\\x", ""),
        ("..\\x", ""),
        ("x", "../../y"),
        ("x", "/etc"),
    ],
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archives_that_lead_out(kind: str, name: str, link: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            info = zipfile.ZipInfo("inside")
            info.filename = name
            if link:
                info.external_attr = 0o120777 << 16
            archive.writestr(info, link or "data")
    else:
        member = tarfile.TarInfo(name)
        if link:
            member.type, member.linkname = tarfile.SYMTYPE, link
        path.write_bytes(tarred([(member, b"")]))
    with pytest.raises(HostileError, match=r"leads out of its folder|is a link"):
        refuse_hostile(path)


def test_script_with_calls_to_files(tmp_path: Path) -> None:
    code = b'def forward(self, x):\n  y = torch.from_file("/etc/passwd", False, 10)\n  return x\n'
    path = tmp_path / "model.pt"
    path.write_bytes(
        zipped(m__code__net_dot_py=code, m__constants_dot_pkl=pickle.dumps(()), m__data_dot_pkl=pickle.dumps({}))
    )
    with pytest.raises(HostileError, match=r"TorchScript code calls torch\.from_file"):
        refuse_hostile(path)


def test_expression_of_an_exported_program(tmp_path: Path) -> None:
    text = json.dumps({"range": "__import__('os').system('touch ran')"}).encode()
    path = tmp_path / "model.pt2"
    honest = json.dumps({"stack_trace": "model = Net().eval()", "op": "torch.ops.aten.exec"}).encode()
    path.write_bytes(zipped(m__models__model_dot_json=honest, m__archive_format=b"pt2"))
    refuse_hostile(path)
    path.write_bytes(zipped(m__models__model_dot_json=text, m__archive_format=b"pt2"))
    with pytest.raises(HostileError, match="an expression in it calls __import__"):
        refuse_hostile(path)


@pytest.mark.parametrize(
    ("config", "words"), [(KERAS, "layer sly is a Lambda"), (LOADER, r"layer far calls keras\.utils\.get_file")]
)
def test_keras_descriptions(config: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    path.write_bytes(zipped(config_dot_json=json.dumps(config).encode(), **{"model.weights.h5": b"\x89HDF"}))
    with pytest.raises(HostileError, match=words):
        refuse_hostile(path)


def test_a_lambda_in_hdf5(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "model.h5"
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(KERAS)
    with pytest.raises(HostileError, match="layer sly is a Lambda"):
        refuse_hostile(path)
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(KERAS).replace("Lambda", "Dense")
    refuse_hostile(path)


@pytest.mark.parametrize("operation", ["EagerPyFunc", "PyFunc", "ReadFile", "WriteFile"])
def test_saved_models(operation: str, tmp_path: Path) -> None:
    node = b"\x0a\x01n\x12" + bytes([len(operation)]) + operation.encode()
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01\x12" + bytes([len(node)]) + node)
    with pytest.raises(HostileError, match=f"its graph holds {operation}, which"):
        refuse_hostile(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01\x12" + bytes([len(node)]) + node.replace(b"\x12", b"\x1a"))
    refuse_hostile(tmp_path)


def test_flex_operations_in_tflite(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(b"\x1c\x00\x00\x00TFL3" + bytes(40) + b"\x0d\x00\x00\x00FlexWriteFile\x00\x00")
    with pytest.raises(HostileError, match="its graph holds WriteFile, which reads or writes files"):
        refuse_hostile(path)
    path.write_bytes(path.read_bytes().replace(b"FlexWriteFile", b"FlexErfFile12"))
    refuse_hostile(path)


def test_skops_schema(tmp_path: Path) -> None:
    schema = {"__class__": "MethodNode", "content": {"module_path": "os", "function": "system"}}
    path = tmp_path / "model.skops"
    path.write_bytes(zipped(schema_dot_json=json.dumps(schema).encode()))
    with pytest.raises(HostileError, match=r"os\.system"):
        refuse_hostile(path)


@pytest.mark.parametrize("command", ["info", "scan", "convert"])
@pytest.mark.parametrize("protocol", [0, 2])
def test_the_command_line_says_hostile(
    command: str, protocol: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(calls("posix", "system", protocol))
    more = {"info": [], "scan": ["--data", str(tmp_path / "none.npz")], "convert": ["-o", str(tmp_path / "x.onnx")]}
    assert run([command, str(path), *more[command]]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"onnxspect: {path}: hostile file: its pickle calls posix.system")
    assert len(said.err.splitlines()) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["m.pt"]


def test_json_and_sarif_for_pipelines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A rule of its own, one result for each call, and nothing of the file that a viewer would obey."""
    path = tmp_path / "m [x](http).pt"
    path.write_bytes(SYSTEM + calls("builtins", "eval"))
    assert run(["info", str(path), "--format", "sarif"]) == 1
    log = json.loads(capsys.readouterr().out)
    (rule,), results = log["runs"][0]["tool"]["driver"]["rules"], log["runs"][0]["results"]
    assert rule["id"] == "OSX901"
    assert {r["ruleId"] for r in results} == {"OSX901"}
    assert [re.search(r"calls (\S+)", r["message"]["text"]).group(1) for r in results] == [
        "posix.system",
        "builtins.eval",
    ]  # type: ignore[union-attr]
    assert " " not in log["runs"][0]["artifacts"][0]["location"]["uri"]
    assert run(["info", str(path), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["verdict"] == "hostile"
    assert len(document["findings"]) == 2
    assert document["path"] == str(path)


def test_output_files_of_a_hostile_file(tmp_path: Path) -> None:
    from onnxspect.cli.hostile_output import put

    error = HostileError("m.pt: hostile file: it bites; it was not run", "leave it", "m.pt", ("it bites",))
    put(
        error,
        [
            "scan",
            "m.pt",
            "-o",
            str(tmp_path / "a.sarif"),
            f"--output={tmp_path / 'b.sarif'}",
            "-o",
            str(tmp_path / "c.html"),
        ],
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.sarif", "b.sarif"]
    assert (
        json.loads((tmp_path / "a.sarif").read_text())["runs"][0]["results"][0]["message"]["text"]
        == "Hostile file: it bites."
    )


def test_an_onnx_file_is_left_to_its_own_reader(tmp_path: Path) -> None:
    refuse_hostile(saved(quadrant_model(), tmp_path / "model.onnx"))
    refuse_hostile(tmp_path / "nothing there")
    with pytest.raises(OnnxspectError, match="no such file"):
        convert(tmp_path / "nothing there", tmp_path / "out.onnx")


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_and_stumps_cost_little(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxspect.converters.file.malice.MOST_BYTES", 1 << 20)
    monkeypatch.setattr("onnxspect.converters.file.malice.ALL_BYTES", 4 << 20)
    monkeypatch.setattr("onnxspect.converters.file.malice.ALL_OPCODES", 10_000)
    path = tmp_path / "bomb"
    path.write_bytes(BOMBS[kind]())
    tracemalloc.start()
    try:
        refuse_hostile(path)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
