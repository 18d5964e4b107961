"""What all runs on hostile inputs share: ordinary inputs, the secret that nobody gave, programs that tell when they are started."""

from __future__ import annotations

import base64
import hashlib
import secrets
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from of_tests import module_of_tests
from PIL import Image, PngImagePlugin

from hostile.case import RAN, Canary

_PROGRAMS = (
    "gs",
    "gswin64c",
    "latex",
    "pdflatex",
    "xelatex",
    "dvipng",
    "kpsewhich",
    "touch",
    "git",
    "identify",
    "convert",
    "ffmpeg",
)


@dataclass(frozen=True)
class Place:
    """What all runs share: ordinary inputs, the secret, programs that tell when they are started."""

    folder: Path
    canary: Canary
    ordinary: dict[str, str]
    limit: int
    seconds: float

    @property
    def programs(self) -> Path:
        """First on PATH."""
        return self.folder / "programs"


def made(folder: Path, limit: int, seconds: float) -> Place:
    """In an empty folder; with the limits of each command."""
    supervised, support = module_of_tests("supervised"), module_of_tests("run_folder_support")
    ordinary = folder / "ordinary"
    ordinary.mkdir()
    (folder / "programs").mkdir()
    for name in _PROGRAMS:
        program = folder / "programs" / name
        program.write_text(f'#!/bin/sh\n: > "{folder}/programs/{RAN}-{name}"\nexit 1\n')
        program.chmod(0o755)
    model = supervised.plain(ordinary)
    report = support.whole_report(hashlib.sha256(model.read_bytes()).hexdigest())
    found = {
        "model": str(model),
        "data": str(supervised.data(ordinary)),
        "run": str(support.finished(ordinary / "run", report)),
        "key": str(_public_key(ordinary)),
    }
    place = Place(folder, _canary(folder / "elsewhere"), found, limit, seconds)
    _check(place.canary)
    return place


def _canary(folder: Path) -> Canary:
    support = module_of_tests("run_folder_support")
    folder.mkdir()
    canary = Canary(secrets.token_hex(32), folder)
    (folder / "secret").write_text(canary.text * 64)
    pixels = np.frombuffer((canary.text * 48).encode(), np.uint8).reshape(32, 32, 3)
    facts = PngImagePlugin.PngInfo()
    facts.add_text("Comment", canary.text)
    Image.fromarray(pixels).save(folder / "secret.png", pnginfo=facts)
    np.save(folder / "secret.npy", np.frombuffer((canary.text * 4).encode(), np.float32).reshape(1, 8, 8))
    support.finished(folder / "run", support.whole_report(reasons=[canary.text], limits=[canary.text]))
    return canary


def _check(canary: Canary) -> None:
    """A search that finds nothing must be able to find."""
    text = canary.text
    for seen in (text, text.upper(), text[::-1], base64.b64encode(b"ab" + text.encode() + b"c").decode()):
        if not canary.found_in(f"before {seen} behind".encode()):
            raise RuntimeError("the search for the secret does not find it")
    if canary.found_in(b"nothing at all") or not canary.found_in(f"x{text}".encode("utf-16")):
        raise RuntimeError("the search for the secret does not work")


def _public_key(folder: Path) -> Path:
    from cryptography.hazmat.primitives.asymmetric import ed25519
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32))).public_key()
    (folder / "public.pem").write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return folder / "public.pem"
