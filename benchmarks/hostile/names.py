"""Hostile class names, policies and requests."""

from __future__ import annotations

import json
from pathlib import Path

from of_tests import module_of_tests

from hostile.case import ELEMENT, ESCAPE, FORGED, READ, REFUSED, Canary, Case, Make, fifo, file_of, link

containers = module_of_tests("hostile_containers")
forms = module_of_tests("data_forms")
conftest = module_of_tests("conftest")

_DATA = ("data",)


def cases() -> list[Case]:
    """All of them."""
    return [*_names(), *_policies()]


# -- class names, policies, requests -----------------------------------------------------------------------------------------


def _names() -> list[Case]:
    kind = "class names"

    def names(data: bytes) -> Make:
        return file_of("names.txt", lambda: data)

    four = f"{ESCAPE}\n{ELEMENT}\n[link=file:///etc/passwd]x[/link]\n$\\frac{{$\n".encode()
    return [
        Case(kind, "colours, elements and mathematics", names(four), ("data with names", "scan with names"), READ),
        Case(
            kind,
            "a million of them",
            names(b"".join(b"%d\n" % i for i in range(1_000_000))),
            ("data with names",),
            READ,
        ),
        Case(kind, "one of four megabytes", names(b"x" * (4 << 20)), ("data with names",), READ),
        Case(kind, "JSON 100,000 deep", names(b"[" * 100_000), ("data with names",), READ),
        Case(
            kind,
            "JSON with a class of index 10^4000",
            names(b'{"' + b"9" * 4000 + b'": "a"}'),
            ("data with names",),
            READ,
        ),
        Case(
            kind,
            "JSON with a class of index 10^12",
            names(b'{"0": "a", "1000000000000": "b"}'),
            ("data with names",),
            READ,
        ),
        Case(kind, "a FIFO", fifo("given"), ("data with names", "scan with names"), REFUSED),
        Case(kind, "an endless device", link("given", "/dev/zero"), ("data with names",), REFUSED),
        Case(kind, "no UTF-8", names(b"\xff\xfe\x9b\x00a\nb\n"), ("data with names",), READ),
    ]


def _policies() -> list[Case]:
    kind = "policies and requests"

    def policy(text: str) -> Make:
        return file_of("onnxspect.toml", lambda: text.encode())

    def to_the_secret(folder: Path, canary: Canary) -> Path:
        (folder / "onnxspect.toml").write_text(f'train = "{canary.folder / "secret"}"\n')
        return folder / "onnxspect.toml"

    accepted = (
        f'[[accept]]\nid = "{json.dumps(ESCAPE)[1:-1]}"\nreason = "{json.dumps(FORGED)[1:-1]}"\nexpires = 2000-01-01\n'
    )
    return [
        Case(
            kind,
            "a policy that is a FIFO",
            fifo("given"),
            ("report by a policy", "scan by a policy"),
            REFUSED,
        ),
        Case(kind, "a policy that is an endless device", link("given", "/dev/zero"), ("report by a policy",), REFUSED),
        Case(kind, "a policy 50,000 deep", policy("data = " + "[" * 50_000), ("report by a policy",), REFUSED),
        Case(
            kind,
            "a policy of a number of 10^6 digits",
            policy("preset = " + "1" * 1_000_000),
            ("report by a policy",),
            REFUSED,
        ),
        Case(kind, "a policy with colours and lines", policy(accepted), ("report by a policy",), READ),
        Case(kind, "a policy whose training set is a secret", to_the_secret, ("scan by a policy",), READ | {1}),
        Case(kind, "a request that is a FIFO", fifo("given"), ("references",), REFUSED),
        Case(kind, "a request 100,000 deep", file_of("request.json", lambda: b"[" * 100_000), ("references",), REFUSED),
        Case(
            kind,
            "a request of a million classes",
            file_of("request.json", lambda: _request(10**6, 1, 8, 8)),
            ("references",),
            READ,
        ),
        Case(
            kind,
            "a request for images of 10^6 by 10^6",
            file_of("request.json", lambda: _request(4, 1, 10**6, 10**6)),
            ("references",),
            READ,
        ),
    ]


def _request(classes: int, *shape: int) -> bytes:
    return json.dumps({"shape": list(shape), "classes": classes, "size": None, "way": None, "names": None}).encode()
