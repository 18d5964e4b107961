"""A report that is handed on: signed with Ed25519 (RFC 8032), and checked against the signer's public key.

What is signed is the whole document, times and paths included, as canonical JSON: keys sorted, no space, ASCII, numbers as Python
writes them (the shortest digits that read back as the same float64); in front of it stands what it is, so that the signature serves
for nothing else. The signature lies in the document's own field `signature`, beside the public key: a reader checks it against a
key that he has from elsewhere, for whoever edits a report can sign it anew with a key of his own.
"""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxspect.converters.sandbox.safe_open import read_regular
from onnxspect.converters.text import printable
from onnxspect.engine.errors import MachineError, OnnxspectError
from onnxspect.engine.stored_report import MOST_BYTES, checked

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

ALGORITHM = "ed25519"
FIELD = "signature"
_PURPOSE = b"onnxspect-report-signature/1\n"
_KEY_BYTES = 1 << 16
_HINT = "openssl genpkey -algorithm ed25519 -out key.pem; openssl pkey -in key.pem -pubout -out public.pem"


def signed(report: dict[str, Any], key: Path) -> dict[str, Any]:
    """The report with a signature in it.

    Args:
        report: as `checked` gave it.
        key: PEM file of an Ed25519 private key, without a password.

    Raises:
        OnnxspectError: no such key, or `cryptography` is not installed.
    """
    private = _private(key)
    plain = {k: v for k, v in report.items() if k != FIELD}
    facts = {
        "algorithm": ALGORITHM,
        "key": base64.b64encode(private.public_key().public_bytes_raw()).decode(),
        "value": base64.b64encode(private.sign(_canonical(plain))).decode(),
    }
    return plain | {FIELD: facts}


def read(path: Path, key: Path | None = None) -> tuple[dict[str, Any], str]:
    """A report that was handed on as a file, checked in shape and digest; with a key, its signature too.

    Args:
        path: of the JSON document.
        key: PEM file of the signer's public key; None takes the report as it is.

    Returns:
        the report without its signature, and the signer's public key in base64; "" for a report without a signature.

    Raises:
        OnnxspectError: no report, changed since it was written, not signed, or not by that key.
    """
    shown = printable(str(path), 200)
    content = read_regular(path, MOST_BYTES)
    try:
        document = json.loads(content.data)
        facts = document.pop(FIELD, None) if isinstance(document, dict) else None
        report = checked(json.dumps(document))
    except (ValueError, RecursionError) as error:
        raise MachineError(
            f"{shown}: no report that can be used: {printable(str(error) or 'nested too deeply', 300)}",
            "give the folder that `onnxspect scan` wrote, or a report that `onnxspect report --sign` printed",
        ) from None
    if key is not None:
        verify(report, facts, key, shown)
    return report, str(facts.get("key", "")) if isinstance(facts, dict) else ""


def verify(report: dict[str, Any], facts: object, key: Path, shown: str) -> None:
    """Check a report's signature.

    Args:
        report: without its signature.
        facts: the field `signature`; None where there is none.
        key: PEM file of the signer's public key.
        shown: what errors call the report.

    Raises:
        OnnxspectError: no such key.
        MachineError: the report is not signed, or not by that key, or was changed since.
    """
    public = _public(key)
    from cryptography.exceptions import InvalidSignature

    if not isinstance(facts, dict):
        raise MachineError(f"{shown}: is not signed", "ask for the report that `onnxspect report --sign` printed")
    try:
        if facts.get("algorithm") != ALGORITHM:
            raise MachineError(f"{shown}: signed by {printable(str(facts.get('algorithm')))}, not by {ALGORITHM}")
        value = base64.b64decode(str(facts.get("value")), validate=True)
        public.verify(value, _canonical(report))
    except (InvalidSignature, binascii.Error, ValueError):
        stated = str(facts.get("key"))
        own = base64.b64encode(public.public_bytes_raw()).decode()
        why = "by another key" if stated != own else "but it was changed since"
        raise MachineError(
            f"{shown}: is signed, {why}: it is not what the owner of {printable(str(key), 200)} signed",
            "ask whoever made it for the report again; do not use this one",
        ) from None


def _canonical(report: dict[str, Any]) -> bytes:
    text = json.dumps(report, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return _PURPOSE + text.encode("ascii")


def _private(path: Path) -> Ed25519PrivateKey:
    from_pem = _cryptography().load_pem_private_key
    from cryptography.hazmat.primitives.asymmetric import ed25519

    found = _loaded(path, lambda data: from_pem(data, password=None), "private")
    if not isinstance(found, ed25519.Ed25519PrivateKey):
        raise OnnxspectError(f"{printable(str(path), 200)}: not an Ed25519 private key", _HINT)
    return found


def _public(path: Path) -> Ed25519PublicKey:
    from_pem = _cryptography().load_pem_public_key
    from cryptography.hazmat.primitives.asymmetric import ed25519

    found = _loaded(path, from_pem, "public")
    if not isinstance(found, ed25519.Ed25519PublicKey):
        raise OnnxspectError(f"{printable(str(path), 200)}: not an Ed25519 public key", _HINT)
    return found


def _loaded(path: Path, load: Any, kind: str) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm

    data = read_regular(path, _KEY_BYTES).data
    try:
        return load(data)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # not PEM; with a password; of a kind that is not known
        raise OnnxspectError(
            f"{printable(str(path), 200)}: not a PEM file of a {kind} key without a password", _HINT
        ) from None


def _cryptography() -> Any:
    try:
        from cryptography.hazmat.primitives import serialization
    except ImportError:
        raise OnnxspectError(
            "signatures need the package cryptography", "install it with: pip install 'onnxspect[sign]'"
        ) from None
    return serialization
