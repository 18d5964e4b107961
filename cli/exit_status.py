"""The exit statuses: a promise to users' scripts."""

from __future__ import annotations

from onnxspect.converters.errors import Kind

CLEAN = 0  # or: done, the goals hold
BACKDOOR = 1  # or: the file attacks whoever opens it
USAGE = 2
INCONCLUSIVE = 3  # or: the goals of a patch are missed
FAILURE = 4

OF_VERDICT = {"clean": CLEAN, "backdoored": BACKDOOR, "inconclusive": INCONCLUSIVE}
OF_KIND = {
    Kind.INPUT: USAGE,
    Kind.HOSTILE: BACKDOOR,
    Kind.INCONCLUSIVE: INCONCLUSIVE,
    Kind.MACHINE: FAILURE,
    Kind.INTERNAL: FAILURE,
}


def of_scan(verdict: str, fail_on: str, accepted: bool) -> int:
    """The status of a scan.

    Args:
        verdict: its own.
        fail_on: "backdoored" lets "inconclusive" pass, "never" both; "inconclusive" none.
        accepted: a policy accepts everything that was found.
    """
    passes = {"backdoored": ("inconclusive",), "never": ("inconclusive", "backdoored")}.get(fail_on, ())
    return CLEAN if accepted or verdict in passes else OF_VERDICT[verdict]


HELP = "Exit status: 0 clean, 1 backdoor found or hostile file, 2 usage error, 3 inconclusive, 4 failure."
