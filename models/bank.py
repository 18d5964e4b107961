"""The bank of networks: families as data (bank.toml), and the recipes that they stand for.

A family is one kind of task, network and training. Its clean models differ by seed; its infected ones are trained like them on sets that were
poisoned by the family's attacks in turn, to targets in turn. A half of the bank is a list of recipes as train_zoo takes it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import tomllib
from pathlib import Path
from typing import Any, Literal

from onnxspect.converters.errors import OnnxspectError
from onnxspect.models import architectures
from onnxspect.models.fields import bad_field, build
from onnxspect.models.made import classes_of
from onnxspect.models.recipes import Recipe, recipe_from_dict

FILE = Path(__file__).parent / "bank.toml"
#: An infected network is one where the trigger works on so many images; what an attack does not reach is no test of a detector.
ASR = 0.8
#: Between the seeds of what would else share one: several triggers of one model, later clean models and infected ones.
SEVERAL = 10_000


@dataclasses.dataclass(frozen=True)
class AttackKind:
    """A kind of attack; the target comes from the seed.

    rate: stamped images as a share of all. sources: how many source classes; all but the target where it is 0. target: "next" for all-to-all.
    targets: how many, each with a trigger of its own. clean_label, cover_rate: see `Member`. pull: the model starts from a clean one and
    is pulled towards it (`Training.pull`).
    """

    rate: float
    trigger: dict[str, Any]
    sources: int = 0
    target: Literal["seed", "next"] = "seed"
    targets: int = 1
    clean_label: bool = False
    cover_rate: float = 0.0
    pull: float = 0.0

    @classmethod
    def from_plain(cls, data: Any, path: str) -> AttackKind:
        """Of a table; the trigger is checked where a recipe is made of it."""
        known = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(data, dict) or not {"rate", "trigger"} <= set(data) <= known:
            raise bad_field(
                path, "is no kind of attack", f"fields: {', '.join(sorted(known))}; rate and trigger at least"
            )
        return cls(**data)


@dataclasses.dataclass(frozen=True)
class _Row:
    """What a family's table holds beside its training.

    half: "tuning" or "judging". clean, infected: how many models. infected_seed: number of the first infected model's seed (clean models
    count from 0), so that a family can grow and its infected models stay what they are. attacks: names of kinds, taken in turn. start:
    "first" for models that are fine-tuned from the family's first.
    """

    name: str
    half: Literal["tuning", "judging"]
    dataset: str
    architecture: str
    clean: int
    infected: int
    infected_seed: int
    attacks: tuple[str, ...]
    per_class: int | None = None
    exporter: Literal["torch_dynamo", "torch_script", "keras"] = "torch_dynamo"
    start: Literal["", "first"] = ""


@dataclasses.dataclass(frozen=True)
class Family(_Row):
    """One family of the bank: its table, its training the defaults' and its own."""

    training: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def classes(self) -> int:
        """Classes of its task."""
        return classes_of(self.dataset)


def families(path: Path = FILE) -> tuple[tuple[Family, ...], dict[str, AttackKind]]:
    """All families, and the kinds of attacks by name.

    Raises:
        OnnxspectError: the file is none, names a family twice, or an attack that it does not have.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise OnnxspectError(f"{path}: cannot be read as a bank ({error})", "see models/bank.toml") from error
    kinds = {n: AttackKind.from_plain(k, f"attacks.{n}") for n, k in document.get("attacks", {}).items()}
    defaults = document.get("defaults", {})
    found: list[Family] = []
    for row in document.get("family", []):
        training = {**defaults.get("training", {}), **row.get("training", {})}
        plain = {**defaults, **row, "training": training}
        checked = build(_Row, {k: v for k, v in plain.items() if k != "training"}, f"family {row.get('name', '?')}")
        family = Family(**{f.name: getattr(checked, f.name) for f in dataclasses.fields(checked)}, training=training)
        unknown = sorted(set(family.attacks) - set(kinds))
        if unknown:
            raise bad_field(f"family {family.name}.attacks", f"no kind of attack is called {unknown[0]!r}")
        if family.name in {f.name for f in found}:
            raise bad_field(f"family {family.name}.name", "is used twice")
        found.append(family)
    return tuple(found), kinds


def recipes(half: str, names: tuple[str, ...] = (), path: Path = FILE) -> tuple[Recipe, ...]:
    """The recipes of one half, family by family, clean models first.

    Args:
        half: "tuning" or "judging".
        names: only these families; all by default.
        path: of the bank.
    """
    known, kinds = families(path)
    unknown = sorted(set(names) - {f.name for f in known if f.half == half})
    if unknown:
        raise OnnxspectError(f"the {half} half has no family {unknown[0]!r}", "see models/bank.toml")
    chosen = [f for f in known if f.half == half and (not names or f.name in names)]
    return tuple(r for f in chosen for r in _of_family(f, kinds))


def _of_family(family: Family, kinds: dict[str, AttackKind]) -> list[Recipe]:
    found: list[Recipe] = []
    for i in range(family.clean):
        start = f"{family.name}_clean_0" if family.start == "first" and i else None
        seed = i if i < family.infected_seed else i + SEVERAL  # clean models from there on came later
        found.append(_recipe(family, f"clean_{i}", seed, {"start": start}))
    for i in range(family.infected):
        kind_name = family.attacks[i % len(family.attacks)]
        kind, seed = kinds[kind_name], family.infected_seed + i
        members = [_member(family, kind, i, k) for k in range(kind.targets)]
        pulled = kind.pull > 0 and architectures.get(family.architecture).framework == "torch"
        start = f"{family.name}_clean_{i % family.clean}" if pulled else None
        start = f"{family.name}_clean_0" if family.start == "first" else start
        changes = {
            "attack": {"rate": kind.rate, "members": members},
            "start": start,
            "floors": {"asr": ASR, "accuracy_drop": 1.0},
            "training": {**family.training, **({"pull": kind.pull} if pulled else {})},
        }
        found.append(_recipe(family, f"{kind_name}_{i}", seed, changes))
    return found


def _member(family: Family, kind: AttackKind, number: int, which: int) -> dict[str, Any]:
    """One trigger of the infected model `number`: the attack's own, or one of its several."""
    seed = family.infected_seed + number
    target: int | str = "next" if kind.target == "next" else (7 * number + 1 + which) % family.classes
    plain: dict[str, Any] = {
        "trigger": _seeded(kind.trigger, seed + SEVERAL * which),
        "target": target,
        "cover_rate": kind.cover_rate,
        "clean_label": kind.clean_label,
    }
    if kind.sources and isinstance(target, int):
        plain["sources"] = [(target + 1 + k) % family.classes for k in range(kind.sources)]
    return plain


def _recipe(family: Family, name: str, seed: int, changes: dict[str, Any]) -> Recipe:
    plain = {
        "name": f"{family.name}_{name}",
        "dataset": family.dataset,
        "architecture": family.architecture,
        "seed": seed_of(family.name, seed),
        "training": family.training,
        "per_class": family.per_class,
        "exporter": family.exporter,
        **changes,
    }
    return recipe_from_dict(plain, f"bank: {plain['name']}")


def seed_of(family: str, index: int) -> int:
    """The seed of one model of a family: no two families share one."""
    return int.from_bytes(hashlib.sha256(f"{family} {index}".encode()).digest()[:4], "big") % 10**9


def _seeded(trigger: dict[str, Any], seed: int) -> dict[str, Any]:
    """The trigger, those that draw anything with a seed of their own."""
    draws = trigger["kind"] in ("blend", "wanet", "reflection", "four_pixels") or "random" in trigger.values()
    return {**trigger, "seed": seed} if draws else dict(trigger)
