"""Opening untrusted ONNX files: what is refused, and that each refusal names the file and the cause."""

from __future__ import annotations

import importlib
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from hostile_graphs import (
    BOMBS,
    WEIGHT,
    bomb,
    classifier,
    deep,
    external,
    field,
    loop,
    model,
    nested_functions,
    recursive_function,
    write,
)
from onnx import TensorProto, helper

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.file.external_data import tensors
from onnxspect.converters.file.graph_cost import graph_cost
from onnxspect.converters.file.onnx_file import Limits, parse_onnx, read_onnx
from onnxspect.converters.file.probe import probe
from onnxspect.converters.file.wire_scan import parse_bound
from onnxspect.converters.sandbox.guard import GuardLimits
from onnxspect.converters.sandbox.pool import WarmPool
from onnxspect.converters.text import printable

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX file kinds")


def refused(path: Path, limits: Limits | None = None) -> OnnxspectError:
    """The error that `read_onnx` raises; it must be one line that names the file."""
    with pytest.raises(OnnxspectError) as caught:
        read_onnx(path, limits)
    assert path.name[:40] in caught.value.message
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()
    return caught.value


# --- what may be opened ------------------------------------------------------------------------------------------


def test_reads_and_probes(tmp_path: Path) -> None:
    file = read_onnx(write(tmp_path / "m.onnx", classifier()))
    assert (file.opset, file.cost.written, file.external, file.warnings) == (17, 2, (), ())
    assert file.identity == file.sha256
    found = probe(file)
    assert [(v.name, v.dtype, v.shape) for v in found.inputs] == [("image", "float32", ("N", 1, 4, 4))]
    assert found.run_shapes == ((1, 3),)
    assert found.finite
    assert found.checker == found.run_error == ""


def test_symbolic_link_of_the_user_is_followed(tmp_path: Path) -> None:
    target = write(tmp_path / "blob", classifier())
    link = tmp_path / "m.onnx"
    try:
        link.symlink_to(target)
    except OSError:
        pytest.skip("no symbolic links here")
    assert read_onnx(link).opset == 17


def test_missing_empty_folder(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "none.onnx").message
    empty = tmp_path / "empty.onnx"
    empty.touch()
    assert "empty (0 bytes)" in refused(empty).message
    assert "a folder" in refused(tmp_path).message


@posix
def test_fifo_and_devices_do_not_block(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.onnx"
    os.mkfifo(fifo)
    start = time.monotonic()
    assert "a FIFO" in refused(fifo).message
    assert "a device" in refused(Path("/dev/zero")).message
    assert time.monotonic() - start < 1


def test_null_in_path() -> None:
    with pytest.raises(OnnxspectError, match="cannot be opened"):
        read_onnx(Path("a\0b.onnx"))


def test_size_limit(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", classifier())
    assert "over the limit" in refused(path, Limits(file_bytes=100)).message


@pytest.mark.parametrize(
    "data",
    [
        b"PK\x03\x04" + bytes(100),
        b"\x89HDF\r\n\x1a\n" + bytes(100),
        b"not a model at all",
        b"\x08\x07",
        b"\x80\x02" * 40,
    ],
    ids=["zip", "hdf5", "text", "no graph", "pickle"],
)
def test_other_files(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    assert "onnxspect convert" in refused(path).hint


def test_truncated_file_says_where(tmp_path: Path) -> None:
    data = classifier().SerializeToString()
    path = tmp_path / "cut.onnx"
    path.write_bytes(data[: len(data) // 2])
    assert "damaged at byte" in refused(path).message


# --- what parsing may take ------------------------------------------------------------------------------------------


def test_amplification_bomb_is_seen_before_parsing(tmp_path: Path) -> None:
    path = tmp_path / "bomb.onnx"
    path.write_bytes(field(7, field(1, b"") * 1_000_000))  # a graph of a million empty nodes, 2 MB
    error = refused(path, Limits(memory_bytes=64 << 20))
    assert "would take more than 64.0 MiB" in error.message


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "unit",
    [
        field(1, b""),
        field(1, field(5, b"")),
        field(1, field(1, b"")),
        field(5, b""),
        field(11, b""),
        field(5, field(7, b"\1" * 50)),
        field(5, field(1, b"\1" * 50)),
    ],
    ids=["nodes", "attributes", "names", "tensors", "values", "varints", "dims"],
)
def test_bound_is_above_what_parsing_takes(unit: bytes) -> None:
    data = field(7, unit * (2_000_000 // len(unit)))

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    bound = parse_bound(data, onnx.ModelProto.DESCRIPTOR, 1 << 40)
    before = resident()
    parsed = onnx.ModelProto()
    parsed.ParseFromString(data)
    taken = resident() - before
    assert taken <= bound + (4 << 20)


def test_many_fields_are_not_walked_for_ever() -> None:
    data = bytes([15 << 3, 1]) * 2000  # an unknown field, two bytes each
    assert parse_bound(data, onnx.ModelProto.DESCRIPTOR, 1 << 30, most=2000) >= len(data)
    with pytest.raises(OnnxspectError, match="more than 1999 fields"):
        parse_bound(data, onnx.ModelProto.DESCRIPTOR, 1 << 30, most=1999)


def test_nesting_bomb() -> None:
    with pytest.raises(OnnxspectError, match="nested deeper"):
        parse_onnx(deep(), Limits())


@pytest.mark.parametrize("name", ["weight", "logits", "Flatten", "image"])
def test_a_name_that_is_no_text(name: str) -> None:
    """Python's protobuf gives bytes for it; nothing behind the door expects that."""
    data = classifier().SerializeToString()
    changed = data.replace(name.encode(), b"\xff" + name.encode()[1:], 1)
    assert changed != data
    with pytest.raises(OnnxspectError, match="not UTF-8"):
        parse_onnx(changed, Limits())


def test_remarks_may_be_in_any_encoding() -> None:
    proto = classifier()
    proto.doc_string = "remark"
    data = proto.SerializeToString().replace(b"remark", b"rem\xe4rk", 1)
    assert parse_onnx(data, Limits()).graph.node


def test_mutated_bytes_never_raise_anything_else() -> None:
    """A short fuzz of the parent's own steps; benchmarks/fuzz_onnx_file.py is the long one, with the child."""
    rng = random.Random(7)
    original = classifier().SerializeToString()
    outcomes = {"read": 0, "refused": 0}
    for _ in range(2000):
        data = bytearray(original)
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            if rng.random() < 0.2:
                del data[rng.randrange(len(data)) :]
            graph_cost(parse_onnx(bytes(data), Limits()))
            outcomes["read"] += 1
        except OnnxspectError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 200


# --- external data ------------------------------------------------------------------------------------------------


def test_external_data_is_read(tmp_path: Path) -> None:
    path = external(tmp_path / "in", "data/w.bin", offset=8, length=len(WEIGHT))
    (path.parent / "data").mkdir()
    (path.parent / "data" / "w.bin").write_bytes(bytes(8) + WEIGHT + b"rest")
    file = read_onnx(path)
    assert file.proto.graph.initializer[0].raw_data == WEIGHT
    assert not any(t.data_location == TensorProto.EXTERNAL for t in tensors(file.proto))
    assert (file.external[0].location, file.external[0].length) == ("data/w.bin", len(WEIGHT))
    assert file.identity != file.sha256
    assert probe(file).run_shapes == ((1, 3),)
    unread = read_onnx(path, external=False)
    assert unread.proto.graph.initializer[0].raw_data == b""


def test_identity_follows_external_data(tmp_path: Path) -> None:
    path = external(tmp_path / "in", "w.bin")
    (path.parent / "w.bin").write_bytes(WEIGHT)
    first = read_onnx(path)
    (path.parent / "w.bin").write_bytes(WEIGHT[::-1])
    second = read_onnx(path)
    assert first.sha256 == second.sha256
    assert first.identity != second.identity


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("../secret", "leads out of the model's folder"),
        ("a/../../secret", "leads out of the model's folder"),
        ("/etc/passwd", "not a relative path"),
        ("C:\\secret", "not a relative path"),
        ("C:secret", "not a relative path"),
        ("..\\secret", "not a relative path"),
        ("\\\\host\\share", "not a relative path"),
        ("", "no location"),
        (".", "names no file"),
        ("a\0b", "not a relative path"),
        ("absent.bin", "no such file"),
        ("*/_ORT_MEM_ADDR_/*", "no such file"),
        ("sub", "is a folder"),
        ("\u202egnp.exe" + "x" * 100_000, "cannot be opened"),
    ],
)
def test_external_data_stays_inside(tmp_path: Path, location: str, words: str) -> None:
    (tmp_path / "secret").write_bytes(WEIGHT)
    path = external(tmp_path / "in", location)
    (path.parent / "sub").mkdir()
    error = refused(path)
    assert words in error.message
    assert "weight" in error.message
    assert len(str(error)) < 1000


def _symbolic(folder: Path, secret: Path) -> str:
    (folder / "w.bin").symlink_to(secret)
    return "w.bin"


def _symbolic_folder(folder: Path, secret: Path) -> str:
    (folder / "sub").symlink_to(secret.parent, target_is_directory=True)
    return f"sub/{secret.name}"


def _hard(folder: Path, secret: Path) -> str:
    os.link(secret, folder / "w.bin")
    return "w.bin"


def _fifo(folder: Path, _: Path) -> str:
    os.mkfifo(folder / "w.bin")
    return "w.bin"


@posix
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_symbolic, "a symbolic link"),
        (_symbolic_folder, "a symbolic link"),
        (_hard, "hard links"),
        (_fifo, "a FIFO"),
    ],
)
def test_external_data_follows_no_link(tmp_path: Path, make: Callable[[Path, Path], str], words: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(WEIGHT)
    (tmp_path / "in").mkdir()
    location = make(tmp_path / "in", secret)
    assert words in refused(external(tmp_path / "in", location)).message


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"length": 8}, "needs 192 bytes, but its external data has 8"),
        ({"offset": 100}, "are asked for"),
        ({"offset": -1}, "not a number"),
        ({"offset": "9" * 30}, "not a number"),
        ({"offset": "1e3"}, "not a number"),
    ],
)
def test_external_data_of_wrong_size(tmp_path: Path, entries: dict[str, int | str], words: str) -> None:
    path = external(tmp_path / "in", "w.bin", **entries)
    (path.parent / "w.bin").write_bytes(WEIGHT)
    assert words in refused(path).message


def test_external_data_limit(tmp_path: Path) -> None:
    path = external(tmp_path / "in", "w.bin")
    (path.parent / "w.bin").write_bytes(WEIGHT)
    assert "external data is over the limit" in refused(path, Limits(external_bytes=100)).message


def test_external_data_in_nested_places_is_found(tmp_path: Path) -> None:
    """Attributes, branches, functions and sparse tensors can hold external tensors as well."""
    outside = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="../secret")
    branch = helper.make_graph([helper.make_node("Constant", [], ["b"], value=outside)], "b", [], [])
    node = helper.make_node("If", ["c"], ["logits"], then_branch=branch, else_branch=branch)
    assert "leads out" in refused(write(tmp_path / "if.onnx", model([node]))).message
    function = helper.make_function(
        "local", "f", [], ["y"], [helper.make_node("Constant", [], ["y"], value=outside)], []
    )
    call = helper.make_node("f", [], ["logits"], domain="local")
    assert "leads out" in refused(write(tmp_path / "f.onnx", model([call], functions=[function]))).message
    sparse = classifier()
    sparse.graph.sparse_initializer.add().indices.CopyFrom(outside)
    assert "leads out" in refused(write(tmp_path / "s.onnx", sparse)).message


# --- odd and old models ---------------------------------------------------------------------------------------------


def test_graph_without_parts(tmp_path: Path) -> None:
    for part, words in (("output", "no outputs"), ("input", "no inputs"), ("node", "no nodes")):
        proto = classifier()
        proto.graph.ClearField(part)
        assert words in refused(write(tmp_path / f"{part}.onnx", proto)).message


def test_missing_opset_is_explained(tmp_path: Path) -> None:
    proto = classifier()
    del proto.opset_import[:]
    file = read_onnx(write(tmp_path / "m.onnx", proto))
    assert file.opset == 1
    assert "no opset_import" in file.warnings[0]


def test_untyped_attributes_are_repaired(tmp_path: Path) -> None:
    proto = classifier()
    attribute = proto.graph.node[0].attribute.add(name="axis", i=1)
    assert attribute.type == onnx.AttributeProto.UNDEFINED
    file = read_onnx(write(tmp_path / "m.onnx", proto))
    assert file.proto.graph.node[0].attribute[0].type == onnx.AttributeProto.INT
    assert "1 attributes have no type" in file.warnings[0]


def test_tensor_that_claims_more_than_it_holds(tmp_path: Path) -> None:
    proto = classifier()
    proto.graph.initializer[0].dims[0] = 10**12
    assert "claims" in refused(write(tmp_path / "m.onnx", proto)).message
    proto.graph.initializer[0].dims[0] = -16
    assert "negative size" in refused(write(tmp_path / "m.onnx", proto)).message


def test_hostile_names(tmp_path: Path) -> None:
    name = "\x1b[2J\u202e" + "x" * 1_000_000
    assert printable(name) == "\\x1b[2J\\u202e" + "x" * 75 + "..."
    proto = classifier()
    proto.graph.initializer[0].name = name
    proto.graph.initializer[0].dims[0] = 10**12
    error = refused(write(tmp_path / "m.onnx", proto))
    assert "\\x1b[2J\\u202exxx" in error.message
    assert len(str(error)) < 1000
    hostile_path = tmp_path / "\x1b[31m.onnx"
    with pytest.raises(OnnxspectError) as caught:
        read_onnx(hostile_path)
    assert "\x1b" not in str(caught.value)


# --- bombs ----------------------------------------------------------------------------------------------------------


def test_nested_functions_are_counted_not_expanded(tmp_path: Path) -> None:
    """Fifty functions, each calling the next twice: 2^50 nodes in a few kilobytes."""
    proto = nested_functions()
    start = time.monotonic()
    assert graph_cost(proto).expanded == 2**50
    assert f"{2**50} when its local functions are expanded" in refused(write(tmp_path / "m.onnx", proto)).message
    assert time.monotonic() - start < 2


def test_recursive_function(tmp_path: Path) -> None:
    assert "calls itself" in refused(write(tmp_path / "m.onnx", recursive_function())).message


def test_long_chain_of_functions_needs_no_recursion() -> None:
    functions = []
    for i in range(5000):
        callee = helper.make_node(f"f{i + 1}", ["x"], ["y"], domain="local" if i < 4999 else "")
        functions.append(helper.make_function("local", f"f{i}", ["x"], ["y"], [callee], []))
    call = helper.make_node("f0", ["image"], ["logits"], domain="local")
    assert graph_cost(model([call], functions=functions)).expanded == 1


@pytest.mark.parametrize("condition", ["true", "passed on"])
def test_endless_loop(tmp_path: Path, condition: str) -> None:
    path = write(tmp_path / "m.onnx", model(loop(None, condition=condition)))
    assert "has no end" in refused(path).message


def test_loop_of_known_length() -> None:
    assert graph_cost(model(loop(100))).executed == 2 + 100 * 2
    assert graph_cost(model(loop(2**63 - 1, condition="computed"))).executed == 2 + 2  # a `while`: ends by itself


def test_long_loop(tmp_path: Path) -> None:
    assert "in one run" in refused(write(tmp_path / "m.onnx", model(loop(10**9)))).message


@pytest.mark.parametrize("name", list(BOMBS))
def test_bomb_ends_in_a_refusal(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / f"{name.split()[0]}.onnx", bomb(name))
    start = time.monotonic()
    with pytest.raises(OnnxspectError) as caught:
        probe(path, Limits(memory_bytes=1 << 30, seconds=20))
    assert path.name in caught.value.message
    text = str(caught.value)
    estimated = "would take" in text and "at batch size 1" in text
    stopped = "of memory" in text or "took more than" in text
    assert estimated or (stopped and name == "Loop of Concat")
    assert time.monotonic() - start < 25


def test_custom_operator_is_named(tmp_path: Path) -> None:
    node = helper.make_node("Trojan", ["image"], ["logits"], domain="evil.corp")
    with pytest.raises(OnnxspectError, match=r"evil\.corp:Trojan"):
        probe(write(tmp_path / "m.onnx", model([node])))


def test_input_that_is_no_image(tmp_path: Path) -> None:
    proto = classifier()
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    with pytest.raises(OnnxspectError, match="takes strings"):
        probe(write(tmp_path / "m.onnx", proto))


def test_free_sizes_are_guessed_and_said(tmp_path: Path) -> None:
    nodes = [helper.make_node("GlobalAveragePool", ["image"], ["logits"])]
    path = write(tmp_path / "m.onnx", model(nodes, shape=("N", 3, "H", "W")))
    found = probe(path)
    assert found.run_shapes == ((1, 3, 1, 1),)
    assert found.guessed == ("image",)
    given = probe(path, input_shapes={"image": (2, 3, 8, 8)})
    assert (given.run_shapes, given.guessed) == (((2, 3, 1, 1),), ())


# --- the fuzz benchmark, in small ---------------------------------------------------------------------------------------


def _fuzz() -> Any:
    sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))  # the script finds its neighbours there
    return importlib.import_module("fuzz_onnx_file")


@pytest.mark.skipif(sys.platform != "linux", reason="a warm pool needs Linux")
def test_mutants_end_in_a_result_or_a_refusal(tmp_path: Path) -> None:
    fuzz = _fuzz()
    seeds = list(fuzz.built_in_seeds().values())
    path = tmp_path / "mutant.onnx"
    outcomes: dict[str, int] = {}
    with WarmPool("probe", GuardLimits(10, 1 << 30)) as pool:
        for seed in seeds:  # unmutated, all of them open: the fuzz starts from live graphs
            path.write_bytes(seed)
            assert fuzz.outcome(path, pool) == "opened"
        for i in range(200):
            path.write_bytes(fuzz.mutated(seeds, 2, i))
            what = fuzz.outcome(path, pool)
            outcomes[what] = outcomes.get(what, 0) + 1
    assert outcomes["opened"] > 5
    assert sum(n for what, n in outcomes.items() if what.startswith("refused by the child")) > 40
    assert fuzz.mutated(seeds, 2, 3) == fuzz.mutated(seeds, 2, 3) != fuzz.mutated(seeds, 2, 4)
