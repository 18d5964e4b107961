"""What a fuzz target is, and the mutants of its seeds. Mutant number i of a target depends on the seed and on i alone."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.text import visible

#: What a mutator puts in: edges of numbers, opcodes, marks of formats, texts that readers trip over.
TOKENS = (
    *(b"\x00", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", b"\xff" * 8, b"\x80" * 9 + b"\x01"),
    *(
        b"\x80\x04",
        b"\x93",
        b"\x94",
        b"R",
        b".",
        b"c",
        b"\n",
        b"(",
        b"cposix\nsystem\n",
        b"\x8c\x05posix",
        b"h\x00",
        b"0",
        b"2",
    ),
    *(b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"ustar", b"../", b"\x93NUMPY", b"TFL3", b"\x89HDF\r\n\x1a\n"),
    *(b"null", b"true", b"-1", b"1e999", b"NaN", b"[]", b"{}", b'""', b'"\\ud800"', b"\x1b[2J", b"[/]", b"$\\frac{$"),
    *(b"[" * 3000, b'{"a":' * 2000, b"9" * 5000, b"\xed\xa0\x80", b"\xe2\x80\xae", b"\x00\xff\xff\xff\xff\x7f"),
    *(b"9" * 40, b",", b"0.5", b"inf", b"-0.0", b"1_0", "٣".encode()),
)


def mutant(seeds: list[bytes], seed: int, i: int) -> bytes:
    """Mutant number i."""
    rng = random.Random(f"{seed}/{i}")
    data, other = bytearray(rng.choice(seeds)), rng.choice(seeds)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at = rng.randrange(len(data) + 1)
        length = min(rng.choice((1, 2, 4, 8, 64)), len(data) - at)
        kind = rng.randrange(7)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + length] = b""
        elif kind == 2:
            data[at:at] = rng.choice(TOKENS)
        elif kind == 3:
            token = rng.choice(TOKENS)
            data[at : at + len(token)] = token
        elif kind == 4:
            data[at:at] = data[at : at + length] * rng.choice((1, 2, 50))
        elif kind == 5:
            start = rng.randrange(len(other) + 1)
            data[at : at + length] = other[start : start + rng.choice((1, 8, 64, 512))]
        else:
            del data[rng.randrange(len(data) + 1) :]
    return bytes(data)


@dataclass(frozen=True)
class Target:
    """A parser.

    Attributes:
        name: its folder among the kept inputs.
        seeds: inputs that it takes, to start from.
        check: how a mutant ended, in few words; raises whatever a broken promise is. The folder is a scratch one.
        mutate: mutant number i, of seeds, a seed and i.
        guarded: as `check`, in a process of its own, for inputs that may kill; None where none does.
    """

    name: str
    seeds: Callable[[], list[bytes]]
    check: Callable[[bytes, Path], str]
    mutate: Callable[[list[bytes], int, int], bytes] = mutant
    guarded: Callable[[bytes, Path], str] | None = None


#: How a mutant may end.
TAKEN, REFUSED, NO_MEMORY = "taken", "refused", "more memory than it may have"


def broken(target: Target, data: bytes) -> Exception | None:
    """What an input does that no input may; None for what is as promised. This process outlives it."""
    return attempt(target.guarded or target.check, data)[1]


def attempt(check: Callable[[bytes, Path], str], data: bytes) -> tuple[str, Exception | None]:
    """(how an input ended, what promise it broke)."""
    with tempfile.TemporaryDirectory(prefix="onnxspect-fuzz-") as scratch:
        try:
            return check(data, Path(scratch)), None
        except MemoryError:  # the command line turns it into a line of its own (cli/main.py)
            return NO_MEMORY, None
        except Exception as error:
            return f"broken: {type(error).__name__}", error


def refused(error: OnnxspectError) -> str:
    """An error that is as it should be: for one line (what the door of the terminal escapes), and no more than a reader takes in.

    Raises:
        OnnxspectError, AssertionError: it is not.
    """
    if len(visible(str(error))) > 4000:
        raise AssertionError(f"an error of {len(str(error))} characters")
    if error.message.startswith("unexpected failure"):
        raise error
    return REFUSED
