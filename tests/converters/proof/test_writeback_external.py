"""Patched files keep the way in which the original lies on disk: the same tensors outside, split the same way."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import CLASSES, SIDE, make_model, quadrant_images, quadrant_model, quadrant_weights
from onnx import TensorProto, helper, numpy_helper

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.file.external_data import tensors
from onnxspect.converters.file.external_layout import data_file_names, write_like
from onnxspect.converters.file.onnx_file import OnnxFile, read_onnx
from onnxspect.converters.lowering.lower import lower
from onnxspect.converters.proof.compare import compare
from onnxspect.converters.proof.oracle import Oracle
from onnxspect.converters.proof.writeback import write_back
from onnxspect.converters.whole import Part

IMAGES = quadrant_images(3).images
#: Tensor -> (location, offset) in the layouts that are tried.
LAYOUTS: dict[str, dict[str, tuple[str, int]]] = {
    "one file": {"w1": ("all.bin", 0), "w2": ("all.bin", 8192), "b": ("all.bin", 4096 * 5)},
    "a file a tensor": {"w1": ("w1.bin", 0), "w2": ("parts/w2.bin", 0), "b": ("parts/b.bin", 0)},
    "the bias inside": {"w1": ("all.bin", 4096), "w2": ("all.bin", 0)},
}


def two_layers() -> onnx.ModelProto:
    """Flatten, MatMul, Relu, MatMul, Add; the second weight is a Constant node's."""
    rng = np.random.default_rng(0)
    w1 = numpy_helper.from_array(quadrant_weights(1), "w1")
    w2 = numpy_helper.from_array(np.float32(np.eye(CLASSES)) + rng.random((CLASSES, CLASSES), np.float32) / 8, "w2")
    nodes = [
        helper.make_node("Flatten", ["image"], ["f"]),
        helper.make_node("MatMul", ["f", "w1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Constant", [], ["c"], value=w2),
        helper.make_node("MatMul", ["r", "c"], ["l"]),
        helper.make_node("Add", ["l", "b"], ["logits"]),
    ]
    return make_model(nodes, [w1, numpy_helper.from_array(rng.random(CLASSES, np.float32), "b")])


def lay_out(folder: Path, proto: onnx.ModelProto, layout: dict[str, tuple[str, int]]) -> Path:
    """Write `proto` with these tensors outside."""
    files: dict[str, bytearray] = {}
    for tensor in tensors(proto):
        if tensor.name not in layout:
            continue
        location, offset = layout[tensor.name]
        content = files.setdefault(location, bytearray())
        content.extend(bytes(max(0, offset + len(tensor.raw_data) - len(content))))
        content[offset : offset + len(tensor.raw_data)] = tensor.raw_data
        for key, value in {"location": location, "offset": offset, "length": len(tensor.raw_data)}.items():
            tensor.external_data.add(key=key, value=str(value))
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
    for location, content in files.items():
        (folder / location).parent.mkdir(parents=True, exist_ok=True)
        (folder / location).write_bytes(content)
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def where(path: Path) -> dict[str, tuple[str, int]]:
    """Tensor -> (location, offset), as a file says."""
    found = {}
    for tensor in tensors(onnx.load(path, load_external_data=False)):
        if tensor.data_location == TensorProto.EXTERNAL:
            entries = {e.key: e.value for e in tensor.external_data}
            found[tensor.name] = (entries["location"], int(entries["offset"]))
            assert not tensor.HasField("raw_data")
            assert int(entries["length"]) == int(np.prod(tensor.dims)) * 4
    return found


def patched(file: OnnxFile, initializer: str) -> onnx.ModelProto:
    """The model with one tensor halved."""
    lowered = lower(file.proto)
    (name,) = [p for p, w in lowered.weights.items() if w.initializer == initializer]
    value = lowered.module.get_parameter(name).numpy() / 2
    model, changes = write_back(file.proto, lowered.weights, {name: value})
    assert [c.initializer for c in changes] == [initializer]
    return model


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tensor", ["w1", "c", "b"])
def test_the_layout_is_kept(tmp_path: Path, layout: str, tensor: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    file = read_onnx(lay_out(tmp_path / "in", two_layers(), LAYOUTS[layout]))
    before = files_of(tmp_path / "in")
    model = patched(file, tensor)
    asked = model.SerializeToString()
    out = tmp_path / "out" / "patched.onnx"
    written = write_like(model, file, out).paths
    assert model.SerializeToString() == asked
    assert files_of(tmp_path / "in") == before
    assert {p.name for p in written} == set(files_of(tmp_path / "out"))
    assert written[-1] == out

    # The same tensors outside, at the same offsets, split into as many files.
    found = where(out)
    assert {name: offset for name, (_, offset) in found.items()} == {n: o for n, (_, o) in LAYOUTS[layout].items()}
    split = {frozenset(n for n in found if found[n][0] == location) for location, _ in found.values()}
    old = LAYOUTS[layout]
    assert split == {frozenset(n for n in old if old[n][0] == location) for location, _ in old.values()}
    assert {location for location, _ in found.values()} == {p.name for p in written[:-1]}
    assert out.stat().st_size < len(asked)

    # Nothing else changed, and it runs as the model does, by onnxruntime's own reader of external data.
    again = read_onnx(out)
    assert [d.name for d in compare(file.proto, again.proto)] == [tensor]
    assert again.proto.SerializeToString() == asked
    images = np.ascontiguousarray(IMAGES)
    np.testing.assert_array_equal(Oracle(out).run({"image": images})[0], Oracle(asked).run({"image": images})[0])
    onnx.checker.check_model(str(out), full_check=True)


def test_a_file_without_external_data_is_one_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(quadrant_model(2).SerializeToString())
    file = read_onnx(path)
    model = patched(file, "weight")
    written = write_like(model, file, tmp_path / "out.onnx")
    assert written.paths == (tmp_path / "out.onnx",)
    assert written.sha256 == hashlib.sha256(model.SerializeToString()).hexdigest()
    assert (tmp_path / "out.onnx").read_bytes() == model.SerializeToString()


def test_what_a_patch_adds_stays_inside(tmp_path: Path) -> None:
    file = read_onnx(lay_out(tmp_path, two_layers(), LAYOUTS["one file"]))
    model = onnx.ModelProto()
    model.CopyFrom(file.proto)
    model.graph.initializer.append(numpy_helper.from_array(np.ones(SIDE * SIDE, np.float32), "onnxspect/mask"))
    model.metadata_props.add(key="onnxspect.method", value="prune")
    write_like(model, file, tmp_path / "out.onnx")
    assert set(where(tmp_path / "out.onnx")) == set(LAYOUTS["one file"])
    assert read_onnx(tmp_path / "out.onnx").proto == model


def test_a_tensor_that_went_away_leaves_no_bytes(tmp_path: Path) -> None:
    file = read_onnx(lay_out(tmp_path, two_layers(), LAYOUTS["a file a tensor"]))
    model = onnx.ModelProto()
    model.CopyFrom(file.proto)
    model.graph.initializer.remove(model.graph.initializer[1])
    model.graph.node.pop()
    model.graph.node[-1].output[0] = "logits"
    write_like(model, file, tmp_path / "out.onnx")
    assert set(where(tmp_path / "out.onnx")) == {"w1", "w2"}
    assert read_onnx(tmp_path / "out.onnx").proto == model


def test_bytes_that_two_tensors_share_are_parted_by_a_patch_of_one(tmp_path: Path) -> None:
    def model() -> onnx.ModelProto:
        rows = np.float32(np.random.default_rng(1).random((CLASSES, CLASSES)))
        nodes = [
            helper.make_node("Flatten", ["image"], ["f"]),
            helper.make_node("MatMul", ["f", "first"], ["a"]),
            helper.make_node("MatMul", ["a", "second"], ["b"]),
            helper.make_node("MatMul", ["b", "third"], ["logits"]),
        ]
        weights = {"first": quadrant_weights(), "second": rows, "third": rows}
        return make_model(nodes, [numpy_helper.from_array(v, k) for k, v in weights.items()])

    layout = {"second": ("tied.bin", 0), "third": ("tied.bin", 0)}
    file = read_onnx(lay_out(tmp_path, model(), layout))
    write_like(patched(file, "first"), file, tmp_path / "tied.onnx")
    assert where(tmp_path / "tied.onnx") == dict.fromkeys(layout, ("tied.onnx.data", 0))
    assert (tmp_path / "tied.onnx.data").stat().st_size == CLASSES * CLASSES * 4
    changed = patched(file, "third")
    write_like(changed, file, tmp_path / "parted.onnx")
    assert where(tmp_path / "parted.onnx") == {"second": ("parted.onnx.data", 0), "third": ("parted.onnx.data", 4096)}
    assert read_onnx(tmp_path / "parted.onnx").proto == changed


def test_a_sparse_file_is_not_written_as_one(tmp_path: Path) -> None:
    """An offset of a terabyte into a file that takes no space costs nothing to name; it is not kept."""
    path = lay_out(tmp_path, two_layers(), {"w1": ("far.bin", 0)})
    proto = onnx.load(path, load_external_data=False)
    far = 1 << 40
    next(e for e in proto.graph.initializer[0].external_data if e.key == "offset").value = str(far)
    path.write_bytes(proto.SerializeToString())
    data = (tmp_path / "far.bin").read_bytes()
    with (tmp_path / "far.bin").open("wb") as stream:
        try:
            stream.truncate(far)
        except OSError:
            pytest.skip("this file system has no sparse files")
        stream.seek(far)
        stream.write(data)
    file = read_onnx(path)
    write_like(file.proto, file, tmp_path / "near.onnx")
    assert (tmp_path / "near.onnx.data").read_bytes() == data
    assert read_onnx(tmp_path / "near.onnx").proto == file.proto


def test_tensors_that_cannot_be_distinguished_stay_inside(tmp_path: Path) -> None:
    """Two Constants whose tensors have the same name."""

    def model() -> onnx.ModelProto:
        nodes = [helper.make_node("Flatten", ["image"], ["f"])]
        for i, value in enumerate((quadrant_weights(), np.eye(CLASSES, dtype=np.float32) * 3)):
            nodes.append(helper.make_node("Constant", [], [f"c{i}"], value=numpy_helper.from_array(value, "value")))
        nodes += [helper.make_node("MatMul", ["f", "c0"], ["h"]), helper.make_node("MatMul", ["h", "c1"], ["logits"])]
        return make_model(nodes)

    proto = model()
    for node in proto.graph.node[1:3]:  # each in a file of its own
        single = onnx.ModelProto()
        single.graph.node.append(node)
        lay_out(tmp_path, single, {"value": (f"{node.output[0]}.bin", 0)})
        node.CopyFrom(single.graph.node[0])
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    file = read_onnx(path)
    assert len(file.external) == 2
    write_like(file.proto, file, tmp_path / "out.onnx")
    assert where(tmp_path / "out.onnx") == {}
    assert read_onnx(tmp_path / "out.onnx").proto == file.proto
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c0.bin", "c1.bin", "model.onnx", "out.onnx"]


def test_writing_again_replaces_all_files(tmp_path: Path) -> None:
    file = read_onnx(lay_out(tmp_path, two_layers(), LAYOUTS["one file"]))
    out = tmp_path / "out.onnx"
    write_like(file.proto, file, out)
    changed = patched(file, "w1")
    write_like(changed, file, out)
    assert read_onnx(out).proto == changed
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize("out", ["model.onnx", "all.onnx"])
def test_the_original_is_never_overwritten(tmp_path: Path, out: str) -> None:
    """Neither the model nor, by a name that happens to be that of its data, what is beside it."""
    layout = {"w1": ("all.onnx.data", 0)}
    file = read_onnx(lay_out(tmp_path, two_layers(), layout))
    before = files_of(tmp_path)
    with pytest.raises(OnnxspectError, match="would overwrite the original"):
        write_like(file.proto, file, tmp_path / out)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    """os.fsync reports what a full disk reports, for the first, second or third file."""
    (tmp_path / "in").mkdir()
    file = read_onnx(lay_out(tmp_path / "in", two_layers(), {"w1": ("a.bin", 0), "b": ("b.bin", 0)}))
    out = tmp_path / "out.onnx"
    write_like(file.proto, file, out)
    before = files_of(tmp_path)
    calls: list[int] = []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) == failing + 1:
            raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OnnxspectError, match="cannot be written") as caught:
        write_like(patched(file, "w1"), file, out)
    assert os.strerror(28) in caught.value.message
    assert files_of(tmp_path) == before


def test_a_folder_in_the_way_is_named(tmp_path: Path) -> None:
    file = read_onnx(lay_out(tmp_path, two_layers(), LAYOUTS["one file"]))
    (tmp_path / "out.onnx.data").mkdir()
    with pytest.raises(OnnxspectError, match=r"out\.onnx\.data: exists and is not a file"):
        write_like(file.proto, file, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("layout", ["one file", "a file a tensor"])
def test_what_is_replaced_keeps_its_data_until_then(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written again and again: at the moment before the model gets its name, the old one is whole; afterwards only the new one is there."""
    place = tmp_path / "original"
    place.mkdir()
    file = read_onnx(lay_out(place, two_layers(), LAYOUTS[layout]))
    folder = tmp_path / "out"
    folder.mkdir()
    out = folder / "out.onnx"
    count = len({p.location for p in file.external})
    first = write_like(file.proto, file, out).paths
    assert {p.name for p in folder.iterdir()} == {p.name for p in first}
    whole = Part.place

    def watched(part: Part) -> None:
        if part.target == out:
            assert read_onnx(out).external  # the old model, and all that it names
        whole(part)

    monkeypatch.setattr(Part, "place", watched)
    for _ in range(3):
        before = {p.name for p in folder.iterdir()}
        written = write_like(file.proto, file, out).paths
        assert {p.name for p in folder.iterdir()} == {p.name for p in written}
        assert before & {p.name for p in written} == {"out.onnx"}
        assert len(written) == count + 1
        assert read_onnx(out).proto.graph.initializer == file.proto.graph.initializer


@pytest.mark.parametrize(
    ("name", "locations", "names"),
    [
        ("m.onnx", ["w"], ["m.onnx.data"]),
        ("m.onnx", ["w", "w", "w"], ["m.onnx.data"]),
        ("m.onnx", ["w", "v"], ["m.onnx.1.data", "m.onnx.2.data"]),
        ("C:\\m ü.onnx", ["w"], ["C__m _.onnx.data"]),
    ],
)
def test_names_of_data_files(name: str, locations: Sequence[str], names: Sequence[str]) -> None:
    from onnxspect.converters.file.external_data import ExternalFile

    pieces = [ExternalFile(location, 0, 4, "", "t") for location in locations]
    assert data_file_names(name, pieces) == tuple(names)


def test_a_field_of_a_later_onnx_is_kept(tmp_path: Path) -> None:
    path = lay_out(tmp_path, two_layers(), LAYOUTS["one file"])
    later = bytes([0xFA, 0x7F, 3]) + b"new"  # field 2047, three bytes
    path.write_bytes(path.read_bytes() + later)
    file = read_onnx(path)
    write_like(file.proto, file, tmp_path / "out.onnx")
    assert later in (tmp_path / "out.onnx").read_bytes()
    assert set(where(tmp_path / "out.onnx")) == set(LAYOUTS["one file"])
