"""The one error type that a user may see. It lives in the lowest layer so that every layer can raise it."""

from __future__ import annotations


class OnnxspectError(Exception):
    """A fact that stops the work, with the way out.

    Args:
        message: one line that names the file (or field) and the fact.
        hint: what the user can do about it; may be empty.
        inconclusive: true where the input is usable but no verdict can be had from it (exit status 3),
            false where the input itself must be corrected (exit status 2).
    """

    def __init__(self, message: str, hint: str = "", *, inconclusive: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.inconclusive = inconclusive

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message
