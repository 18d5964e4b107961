"""A report that is handed on: what was signed is shown, anything else is not."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from run_folder_support import finished, whole_report

from onnxspect.cli.main import run
from onnxspect.engine.errors import Kind, OnnxspectError
from onnxspect.engine.report import signature
from onnxspect.engine.stored_report import digest


def keys(folder: Path, name: str, seed: int) -> tuple[Path, Path]:
    """A pair of PEM files, private and public."""
    private = ed25519.Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / f"{name}.pem").write_bytes(pem)
    (folder / f"{name}.pub").write_bytes(public)
    return folder / f"{name}.pem", folder / f"{name}.pub"


@pytest.fixture
def handed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Path, Path, Path]:
    """(signed report, signer's public key, another's public key)."""
    private, public = keys(tmp_path, "own", 1)
    _, other = keys(tmp_path, "other", 2)
    assert run(["report", str(finished(tmp_path / "run")), "--sign", str(private)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    (tmp_path / "signed.json").write_text(out)
    return tmp_path / "signed.json", public, other


def test_round_trip(handed: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    path, public, _ = handed
    for form in ("text", "json", "html", "sarif"):
        assert run(["report", str(path), "--verify-key", str(public), "--format", form]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert out
    assert signature.read(path, public)[0] == whole_report()


def test_without_a_key_it_says_that_nothing_was_checked(
    handed: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["report", str(handed[0])]) == 0
    assert "which was not checked" in capsys.readouterr().err
    handed[0].write_text(json.dumps(whole_report()))
    assert run(["report", str(handed[0])]) == 0
    assert "not signed" in capsys.readouterr().err


def test_a_wrong_key(handed: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    path, _, other = handed
    assert run(["report", str(path), "--verify-key", str(other)]) == 4
    out, err = capsys.readouterr()
    assert out == ""
    assert "is signed, by another key" in err
    assert len(err.splitlines()) == 2


def cleaned(document: dict[str, Any]) -> None:
    document["verdict"], document["targets"] = "clean", []


EDITS: dict[str, Callable[[dict[str, Any]], None]] = {
    "another verdict": cleaned,
    "another name": lambda d: d["model"].update(path="other.onnx"),
    "another folder": lambda d: d["model"].update(
        path="elsewhere/model.onnx"
    ),  # the digest does not see it, the signature does
    "another time": lambda d: d.update(seconds=9.0),
    "another model": lambda d: d["model"].update(sha256="c" * 64),
    "a field more": lambda d: d.update(note="all is well"),
    "a field less": lambda d: d.pop("precision"),
    "another number": lambda d: d["classes"][0].update(p_value=0.8999999999999999),
}


@pytest.mark.parametrize("kind", EDITS)
def test_an_edited_report(kind: str, handed: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Even where the digest was made to fit again."""
    path, public, _ = handed
    document = json.loads(path.read_text())
    EDITS[kind](document)
    facts = document.pop("signature")
    path.write_text(json.dumps(document | {"digest": digest(document), "signature": facts}))
    assert run(["report", str(path), "--verify-key", str(public)]) == 4
    out, err = capsys.readouterr()
    assert out == ""
    assert "is signed, but it was changed since" in err


def test_an_edited_report_that_its_editor_signed(handed: tuple[Path, Path, Path], tmp_path: Path) -> None:
    path, public, _ = handed
    document = json.loads(path.read_text())
    del document["signature"]
    cleaned(document)
    forged = signature.signed(document | {"digest": digest(document)}, tmp_path / "other.pem")
    path.write_text(json.dumps(forged))
    assert signature.read(path, tmp_path / "other.pub")[0]["verdict"] == "clean"
    with pytest.raises(OnnxspectError, match="by another key"):
        signature.read(path, public)
    forged["signature"]["key"] = base64.b64encode(
        ed25519.Ed25519PrivateKey.from_private_bytes(b"\x01" * 32).public_key().public_bytes_raw()
    ).decode()
    path.write_text(json.dumps(forged))
    with pytest.raises(OnnxspectError, match="it was changed since"):
        signature.read(path, public)


def test_spelling_does_not_matter(handed: tuple[Path, Path, Path]) -> None:
    """Another order of keys, another indentation, other escapes: the same document."""
    path, public, _ = handed
    document = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(document.items())), indent=7, ensure_ascii=True))
    assert signature.read(path, public)[0] == whole_report()


@pytest.mark.parametrize(
    "facts",
    [
        None,
        3,
        [],
        {},
        {"algorithm": "none"},
        {"algorithm": "ed25519", "value": "?"},
        {"algorithm": "ed25519", "value": ""},
        {"algorithm": "ed25519", "value": "AAAA"},
        {"algorithm": ["ed25519"], "value": {}},
    ],
)
def test_signatures_that_are_none(facts: Any, handed: tuple[Path, Path, Path]) -> None:
    path, public, _ = handed
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"signature": facts}))
    with pytest.raises(OnnxspectError) as caught:
        signature.read(path, public)
    assert caught.value.kind is Kind.MACHINE
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not PEM",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        "password",
        "elliptic",
        "public",
    ],
)
def test_keys_that_are_none(content: bytes | str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = finished(tmp_path / "run")
    path = tmp_path / "key.pem"
    private = ed25519.Ed25519PrivateKey.generate()
    if content == "password":
        path.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")))
    elif content == "elliptic":
        curve = ec.generate_private_key(ec.SECP256R1())
        path.write_bytes(curve.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    elif content == "public":
        path.write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    else:
        path.write_bytes(bytes(content, "ascii") if isinstance(content, str) else content)
    assert run(["report", str(folder), "--sign", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "key" in err
    assert len(err.splitlines()) == 2


def test_what_does_not_go_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(finished(tmp_path / "run"))
    private, public = map(str, keys(tmp_path, "own", 1))
    assert run(["report", folder, "--sign", private, "--format", "html"]) == 2
    assert run(["report", folder, "--verify-key", public]) == 2
    assert "a run folder has no signature" in capsys.readouterr().err
    report = copy.deepcopy(whole_report()) | {"verdict": "clean"}
    (tmp_path / "edited.json").write_text(json.dumps(report))
    assert run(["report", str(tmp_path / "edited.json")]) == 4
