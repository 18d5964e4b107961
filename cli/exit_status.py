"""The exit statuses: a promise to users' scripts."""

from __future__ import annotations

CLEAN = 0  # or: done, the goals hold
BACKDOOR = 1  # or: the goals of a patch do not hold
USAGE = 2
INCONCLUSIVE = 3
FAILURE = 4

OF_VERDICT = {"clean": CLEAN, "backdoored": BACKDOOR, "inconclusive": INCONCLUSIVE}

HELP = "Exit status: 0 clean, 1 backdoor found, 2 usage error, 3 inconclusive, 4 failure."
