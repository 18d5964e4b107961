"""Which scans there are to be done, each told from every other by the bytes and settings that its result depends on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from onnxspect.converters.errors import OnnxspectError
from onnxspect.engine.fleet.content import data_digest, model_digest, of_text, version_digest
from onnxspect.engine.fleet.models import Wanted, is_there

#: Options of a scan, name -> values, or () for a flag.
Options = Mapping[str, tuple[str, ...]]
#: Options that say how a command is carried out, and change no result.
_CARRIED_OUT = frozenset({"max-memory", "max-seconds", "require-sandbox"})
#: Options that references do not depend on.
_OF_MODELS = frozenset({"output", "bind", "scale", "mean", "std", "channel-order", "prior"})
#: Digits of a digest: in the name of a run folder, in a key.
_DIGITS, KEY_DIGITS = 12, 32


@dataclass(frozen=True)
class Scan:
    """One model's scan, with what tells it from every other.

    Attributes:
        wanted: the model, and its own options.
        options: all options of the scan.
        key: of model, data, settings and version; "" where it cannot be read.
        group: of data, settings and version alone.
        model, data: digests.
        problem: why it cannot be scanned, or "".
    """

    wanted: Wanted
    options: Options = field(hash=False)
    key: str
    group: str = ""
    model: str = ""
    data: str = ""
    problem: str = ""

    @property
    def name(self) -> str:
        """Of its run folder."""
        stem = "-".join(self.wanted.path.stem.split())[:80].lstrip(".") or "model"
        return f"{stem}-{self.key[:_DIGITS]}"


def planned(models: Sequence[Wanted], common: Options, threads: int) -> Iterator[Scan]:
    """The scans, in order; a model or samples that cannot be read are a problem of that scan alone.

    Args:
        models: what is wanted.
        common: options of all; a model's own go before them.
        threads: of each worker, which change the last bits of a result.
    """
    digests: dict[Path, str] = {}

    def of_data(options: Options, name: str) -> str:
        if not options.get(name):
            return ""
        path = Path(options[name][0])
        if path.resolve() not in digests:
            digests[path.resolve()] = data_digest(path)
        return digests[path.resolve()]

    for wanted in models:
        options = dict(common) | dict(wanted.options)
        try:
            if not options.get("data"):
                raise OnnxspectError("no clean samples are given", "--data PATH, or data in the list")
            if not wanted.path.exists():
                raise OnnxspectError(
                    f"{wanted.path}: no such file or folder",
                    "a path from where the command is run, or from the folder of the list that names it",
                )
            data = of_text(of_data(options, "data"), of_data(options, "train"))
            own = model_digest(wanted.path)
            classes = _names(options)
        except (OnnxspectError, OSError) as error:
            yield Scan(
                wanted, options, of_text(str(wanted.path), json.dumps(sorted(options.items()))), problem=str(error)
            )
            continue
        settings = {k: v for k, v in options.items() if k not in ("data", "train", "classes") and k not in _CARRIED_OUT}
        of_all = (data, classes, version_digest(), str(threads))
        shared = sorted((k, v) for k, v in settings.items() if k not in _OF_MODELS)
        group = of_text("references", json.dumps(shared), *of_all)[:KEY_DIGITS]
        key = of_text("scan", own, json.dumps(sorted(settings.items())), *of_all)[:KEY_DIGITS]
        yield Scan(wanted, options, key, group, own, data)


def _names(options: Options) -> str:
    """The class names that are given, or the bytes of the file that holds them."""
    (given,) = options.get("classes") or ("",)
    path = Path(given)
    return data_digest(path) if given and "," not in given and path.exists() else given


def reads(options: Options) -> tuple[Path, ...]:
    """Files and folders of the user that a command reads."""
    named = [Path(v[0]) for k in ("data", "train", "classes") if (v := options.get(k))]
    return tuple(p for p in named if is_there(str(p)))


def as_arguments(options: Options) -> list[str]:
    """Options as the command line has them; a value never begins an option of its own."""
    arguments: list[str] = []
    for name, values in sorted(options.items()):
        arguments += [f"--{name}={v}" for v in values] if values else [f"--{name}"]
    return arguments
