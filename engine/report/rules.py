"""The kinds of findings, one rule each, with ids that never change: what SARIF, policies and docs/findings/ are made of.

An id is never used for anything else once it was published; a rule that is given up keeps its place and says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata

PACKAGE = "onnxspect"


@dataclass(frozen=True)
class Taxon:
    """An entry of a public taxonomy.

    Attributes:
        taxonomy: its name in TAXONOMIES.
        id: as the taxonomy writes it.
        name: its title there.
        url: where it is defined.
    """

    taxonomy: str
    id: str
    name: str
    url: str


@dataclass(frozen=True)
class Taxonomy:
    """A public taxonomy: its organisation, its version as cited, and its home."""

    name: str
    organization: str
    version: str
    description: str
    url: str


TAXONOMIES = (
    Taxonomy(
        "MITRE ATLAS",
        "MITRE",
        "4.9",
        "Adversarial Threat Landscape for Artificial-Intelligence Systems.",
        "https://atlas.mitre.org/",
    ),
    Taxonomy("CWE", "MITRE", "4.17", "The MITRE Common Weakness Enumeration.", "https://cwe.mitre.org/"),
    Taxonomy(
        "OWASP ML Top 10",
        "OWASP",
        "2023",
        "OWASP Machine Learning Security Top Ten.",
        "https://owasp.org/www-project-machine-learning-security-top-10/",
    ),
)
_POISON = Taxon("MITRE ATLAS", "AML.T0018.000", "Poison AI Model", "https://atlas.mitre.org/techniques/AML.T0018.000")
_ARCHITECTURE = Taxon(
    "MITRE ATLAS",
    "AML.T0018.001",
    "Modify AI Model Architecture",
    "https://atlas.mitre.org/techniques/AML.T0018.001",
)
_EMBEDDED = Taxon("CWE", "CWE-506", "Embedded Malicious Code", "https://cwe.mitre.org/data/definitions/506.html")
_PERTURBED = Taxon(
    "CWE",
    "CWE-1039",
    "Inadequate Detection or Handling of Adversarial Input Perturbations in Automated Recognition Mechanism",
    "https://cwe.mitre.org/data/definitions/1039.html",
)
_POISONING = Taxon(
    "OWASP ML Top 10",
    "ML10",
    "Model Poisoning",
    "https://owasp.org/www-project-machine-learning-security-top-10/docs/ML10_2023-Model_Poisoning",
)


@dataclass(frozen=True)
class Rule:
    """A kind of finding.

    Attributes:
        id: stable, opaque.
        name: for people, in PascalCase as SARIF's viewers show it.
        title: one line.
        what: what it means, a paragraph.
        risk: what an attacker gains, a paragraph.
        evidence: what the finding rests on, and where it may be wrong, a paragraph.
        fix: what to do, a paragraph.
        level: SARIF's level.
        severity: GitHub's `security-severity`, 0 to 10; "" for what is no vulnerability.
        taxa: where public taxonomies have it.
    """

    id: str
    name: str
    title: str
    what: str
    risk: str
    evidence: str
    fix: str
    level: str = "error"
    severity: str = "9.0"
    taxa: tuple[Taxon, ...] = (_POISON, _EMBEDDED, _PERTURBED, _POISONING)

    @property
    def url(self) -> str:
        """Where its page is published: below the installed package's `Documentation` URL; without one, a URN of its own."""
        home = documentation()
        return f"{home}findings/{self.id}/" if home else f"urn:onnxspect:finding:{self.id}"

    @property
    def help(self) -> str:
        """Its page, in Markdown."""
        lines = [f"# {self.id}: {self.title}", "", f"**What it means.** {self.what}", "", f"**The risk.** {self.risk}"]
        lines += ["", f"**The evidence.** {self.evidence}", "", f"**What to do.** {self.fix}"]
        if self.taxa:
            lines += [
                "",
                "**In public taxonomies.** " + "; ".join(f"[{t.id} {t.name}]({t.url})" for t in self.taxa) + ".",
            ]
        return "\n".join(lines) + "\n"


_RISK = (
    "Whoever knows the trigger decides what the model answers, and nothing on ordinary inputs shows it: accuracy on a test "
    "set stays what it was."
)
_EVIDENCE = (
    "The class is reached by a far smaller change than in reference networks that were trained on your own clean samples, and "
    "the change works on images that the search never saw. A trigger that is found is the smallest that works, not always the "
    "attacker's own. A finding can be wrong: the p-value says how often a clean model would look like this."
)
_FIX = (
    "Do not deploy the model. `onnxspect patch` removes the backdoor and proves it on the written file; then `onnxspect verify` "
    "on samples that neither scan nor patch has seen. Find out where the model and its training data came from: "
    "`onnxspect cleanse` names the poisoned samples of a training set."
)

RULES: Mapping[str, Rule] = {
    rule.id: rule
    for rule in (
        Rule(
            "OSX101",
            "LocalTriggerBackdoor",
            "Backdoor with a local trigger",
            "A small patch in one place of the image, such as a sticker or a few pixels, sends images of other classes to one "
            "class.",
            f"{_RISK} A local patch can be carried out in the physical world, with a sticker in front of a camera.",
            _EVIDENCE,
            _FIX,
            severity="9.3",
        ),
        Rule(
            "OSX102",
            "WholeImageTriggerBackdoor",
            "Backdoor with a trigger spread over the image",
            "A pattern that is blended or added to the whole image, often too faint to see, sends images of other classes to "
            "one class.",
            f"{_RISK} A faint pattern passes a person who looks at the images.",
            _EVIDENCE,
            _FIX,
        ),
        Rule(
            "OSX103",
            "SampleSpecificTriggerBackdoor",
            "Backdoor with a trigger that differs from image to image",
            "A change that is another one for every image sends images of other classes to one class. It was "
            "found inside the network; there is no single picture of it.",
            f"{_RISK} What has no fixed pattern cannot be filtered by looking for one.",
            _EVIDENCE,
            _FIX,
        ),
        Rule(
            "OSX107",
            "WarpBackdoor",
            "Backdoor that a warp opens",
            "Moving the pixels of an image by a little, all images in the same way, sends images of other classes to one class.",
            f"{_RISK} A slight warp passes a person who looks at the images, and there is no pattern to filter.",
            _EVIDENCE,
            _FIX,
        ),
        Rule(
            "OSX104",
            "AllToAllBackdoor",
            "Backdoor that leads every class to another one",
            "One trigger makes the model answer another class for images of every class (all-to-all).",
            _RISK,
            _EVIDENCE,
            _FIX,
        ),
        Rule(
            "OSX105",
            "SourceSpecificBackdoor",
            "Backdoor that acts from one class only",
            "A trigger sends images of one chosen class to another class, and leaves the others alone.",
            f"{_RISK} It is harder to find than one that acts from every class.",
            _EVIDENCE,
            _FIX,
        ),
        Rule(
            "OSX106",
            "GraphLogicBackdoor",
            "Backdoor in the logic of the graph",
            "A part of the graph sleeps on every clean image, and a trigger that was found wakes it: the answer is then one class.",
            f"{_RISK} No weight was touched, and retraining does not remove it.",
            "The trigger was solved back from the part, and works in onnxruntime on images that had no part in that; with the part "
            "held asleep the same images are answered as before. No class is compared with another.",
            "Do not deploy the model. `onnxspect patch --method cut` cuts the part out and proves that every clean answer stays bit "
            "for bit the same. Then find out who built the graph.",
            severity="9.3",
            taxa=(_ARCHITECTURE, _EMBEDDED, _POISONING),
        ),
        Rule(
            "OSX109",
            "Backdoor",
            "Backdoor of a kind that is not known",
            "A class stands out so far that a backdoor leads to it, and the evidence does not say of which kind.",
            _RISK,
            _EVIDENCE,
            _FIX,
        ),
        Rule(
            "OSX201",
            "HiddenLogic",
            "Part of the graph is out of every search's reach",
            "The graph has logic that sleeps on clean samples, or passes no gradient: what it does cannot be searched for. An "
            "attacker can hide a backdoor in it without touching a weight.",
            f"{_RISK} Retraining does not remove what was built into the architecture.",
            "The parts are named in the report. Ordinary models have such parts seldom; a graph that an exporter unrolled may.",
            "Read the named nodes (`onnxspect info`, or a viewer), export the model anew from sources that you trust, or scan "
            "the part before them.",
            level="warning",
            severity="6.5",
            taxa=(_ARCHITECTURE, _EMBEDDED, _POISONING),
        ),
        Rule(
            "OSX301",
            "NoVerdict",
            "No verdict",
            'What was measured allows neither "clean" nor "backdoored". The report\'s reasons say why: too few clean samples, '
            "searches that did not converge, too few classes.",
            "A model without a verdict is a model that was not checked.",
            "See the reasons in the report; each names what is missing.",
            "Give more clean samples, a more thorough preset (`--preset thorough`) or the training set (`--train`).",
            level="warning",
            severity="",
            taxa=(),
        ),
    )
}


def documentation() -> str:
    """The installed package's `Documentation` URL with a slash at its end; "" where it has none."""
    for line in metadata.metadata(PACKAGE).get_all("Project-URL") or []:
        label, _, url = line.partition(",")
        if label.strip().lower() == "documentation":
            return url.strip().rstrip("/") + "/"
    return ""
