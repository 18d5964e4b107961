"""What a pickle would import, found without running it.

A pickle is a program for a stack machine. This follows the opcodes (protocol 0 to 5) with a stack on which only
texts keep their value, so that a name put together out of the memo is found as well (STACK_GLOBAL). Nothing is imported, called or
built. A program that breaks off is read up to there, because the unpickler runs it up to there too; what follows is searched for the
opcodes of *known* names at any offset: raw arrays lie between the pickles of joblib and after those of PyTorch's older files.
"""

from __future__ import annotations

import codecs
import io
import pickletools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from onnxspect.converters.file.dangerous_names import GETATTR, TELLING, TELLING_NEARBY, harm

#: Opcodes that are followed, at most: a checkpoint of a large network has some 10^5, and a million take four seconds.
MOST_OPCODES = 1_000_000
#: Bytes after the last pickle that are searched.
MOST_SEARCHED = 64 << 20
_TEXTS = frozenset(
    ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING")
)
_BYTES = frozenset(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "BINSTRING", "SHORT_BINSTRING", "STRING"))
#: Opcodes whose argument is a line, which is of no use here.
_LINES = frozenset(("INT", "LONG", "FLOAT", "PERSID"))
_CODES = {ord(o.code): o for o in pickletools.opcodes}
_IMPORTS = frozenset(("GLOBAL", "INST", "STACK_GLOBAL"))
_REACHES, _HIDES = "reaches for code", "hides the name that it calls"
_PROTO = 0x80
#: Opcodes after a getattr within which its argument is looked for: two names, each with its memo, and the tuple around them.
_NEAR = 24
_PUT = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))
_GET = frozenset(("GET", "BINGET", "LONG_BINGET"))
#: How a pickle, a zip archive or an array with a pickle begins, inside a text of bytes.
_WITHIN = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04", b"\x93NUMPY")
_GLOBAL = re.compile(rb"[ci]([A-Za-z_][\w.]{0,80})\n([A-Za-z_][\w.]{0,80})\n")
_MEMO = rb"(?:\x94|q.|r....)?"
_STACK_GLOBAL = re.compile(
    rb"\x8c(.)([A-Za-z_][\w.]{1,80}?)" + _MEMO + rb"\x8c(.)([A-Za-z_][\w.]{0,80}?)" + _MEMO + rb"\x93", re.DOTALL
)


@dataclass(frozen=True)
class Global:
    """A name that a pickle imports.

    Attributes:
        module, name: as they stand there; "?" where the program computes them.
        at: offset of the opcode in the bytes.
        harm: what it does that no weights need; "" for all others.
    """

    module: str
    name: str
    at: int
    harm: str

    @property
    def full(self) -> str:
        """ "module.name"."""
        return f"{self.module}.{self.name}"


@dataclass
class Scan:
    """What was found.

    Attributes:
        globals: in their order.
        within: bytes inside it that may be a pickle or an archive of their own.
        whole: whether it was a pickle, or several, up to its end.
        opcodes: how many were followed.
    """

    globals: list[Global] = field(default_factory=list)
    within: list[bytes] = field(default_factory=list)
    whole: bool = False
    opcodes: int = 0

    @property
    def harmful(self) -> list[Global]:
        """Those that do harm, each once."""
        seen: dict[str, Global] = {}
        for g in self.globals:
            if g.harm:
                seen.setdefault(g.full, g)
        return list(seen.values())


def scan(data: bytes, most: int = MOST_OPCODES) -> Scan:
    """Follow all pickles in `data`, one after the other, up to so many opcodes."""
    found = Scan()
    stream, left = io.BytesIO(data), most
    start = 0
    while start < len(data) and left > 0:
        used, ended = _follow(stream, found, left)
        left -= used
        if not ended:
            break
        start = stream.tell()
    found.whole = start == len(data) > 0
    found.opcodes = most - left
    if not found.whole:
        found.globals += _anywhere(data, start)
    return found


def looks_like_pickle(head: bytes) -> bool:
    """Whether bytes may begin a pickle: by the mark of protocol 2 and later, or by the first opcodes of the older ones."""
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return True
    return head[:1] in b"(]})cIVSNFi" and _begins(head)


def _begins(head: bytes) -> bool:
    """Whether the first opcodes are those of a pickle of protocol 0 or 1; a text begins with such letters by chance."""
    steps = 0
    try:
        for opcode, _, _ in _opcodes(io.BytesIO(head)):
            steps += 1
            if opcode.name == "STOP":
                return steps > 1
            if steps >= 8:
                return True
    except (ValueError, EOFError, IndexError, UnicodeDecodeError, OverflowError):
        return steps >= 3
    return False


def _follow(stream: io.BytesIO, found: Scan, most: int) -> tuple[int, bool]:
    """One pickle: how many opcodes, and whether it came to its end."""
    start = stream.tell()
    watch, first = _Reach(), len(found.globals)
    used, ended = _run(stream, found, watch, most)
    if stream.getbuffer()[start] == _PROTO:
        # Without this mark the bytes may be weights, in which the opcode stands by chance.
        found.globals[first:] = [replace(g, harm=_HIDES) if g.full == "?.?" else g for g in found.globals[first:]]
    if watch.telling:
        found.globals[first:] = [replace(g, harm=_REACHES) if g.full in GETATTR else g for g in found.globals[first:]]
    return used, ended


@dataclass
class _Reach:
    """Whether a pickle's getattr reaches for what no honest one does.

    Attributes:
        telling: so far.
        since: opcodes since a getattr was imported; None before any.
    """

    telling: bool = False
    since: int | None = None

    def text(self, text: str | None) -> None:
        """A text that was put on the stack."""
        near = self.since is not None and self.since <= _NEAR
        self.telling |= text in TELLING or (near and text in TELLING_NEARBY)


def _run(stream: io.BytesIO, found: Scan, watch: _Reach, most: int) -> tuple[int, bool]:
    stack: list[str | None] = []
    marks: list[int] = []
    memo: dict[int, str | None] = {}
    used = 0
    try:
        for opcode, argument, at in _opcodes(stream):
            used += 1
            watch.since = None if watch.since is None else watch.since + 1
            name = opcode.name
            if name in ("GLOBAL", "INST"):
                module, _, attribute = str(argument).partition("\n")
                found.globals.append(Global(module, attribute, at, harm(module, attribute)))
            elif name == "STACK_GLOBAL":
                found.globals.append(_of_stack(stack, at))
            if name in _IMPORTS and found.globals[-1].full in GETATTR:
                watch.since = 0
            if name in _PUT:
                memo[int(argument)] = stack[-1] if stack else None
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1] if stack else None
            elif name in _GET:
                stack.append(memo.get(int(argument)))
                watch.text(stack[-1])
            elif name == "DUP":
                stack.append(stack[-1] if stack else None)
            elif name == "MARK":
                marks.append(len(stack))
            elif name in _TEXTS:
                stack.append(str(argument))
                watch.text(stack[-1])
            else:
                _moved(opcode, stack, marks)
            if name in _BYTES:
                _keep(argument, found)
            if used >= most:
                return used, False
            if name == "STOP":
                return used, True
    except (ValueError, EOFError, IndexError, UnicodeDecodeError, OverflowError, MemoryError):
        return used, False  # it breaks off, and so would the unpickler; or its memo is of another make
    return used, False


def _opcodes(stream: io.BytesIO) -> Iterator[tuple[pickletools.OpcodeInfo, Any, int]]:
    """Opcode, argument and offset, one after the other up to STOP, read as the unpickler reads them.

    pickletools.genops reads lines otherwise: it gives up at a letter that is not ASCII and at a number such as 0x10, undoes escapes
    in names that the unpickler takes as they stand, and so can be made to stop before what a file hides.

    Raises:
        ValueError, EOFError, UnicodeDecodeError: the program breaks off.
    """
    while code := stream.read(1):
        at = stream.tell() - 1
        opcode = _CODES.get(code[0])
        if opcode is None:
            return
        name = opcode.name
        argument: Any = None
        if name in ("GLOBAL", "INST"):
            argument = "\n".join(_line(stream).decode("utf-8") for _ in range(2))
        elif name == "STRING":
            argument = codecs.escape_decode(_line(stream).strip(b"\"'"))[0].decode("latin-1")
        elif name == "UNICODE":
            argument = _line(stream).decode("raw-unicode-escape")
        elif name in ("PUT", "GET"):
            argument = int(_line(stream))
        elif name in _LINES:
            _line(stream)
        elif opcode.arg is not None:
            argument = opcode.arg.reader(stream)
        yield opcode, argument, at
        if name == "STOP":
            return


def _line(stream: io.BytesIO) -> bytes:
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise EOFError("a line without an end")
    return line[:-1]


def _of_stack(stack: list[str | None], at: int) -> Global:
    """The name on top of the stack. Only a program that wants to hide it computes one."""
    module, name = stack[-2:] if len(stack) >= 2 else (None, None)
    if module is None or name is None:
        return Global("?", "?", at, "")
    return Global(module, name, at, harm(module, name))


def _moved(opcode: pickletools.OpcodeInfo, stack: list[str | None], marks: list[int]) -> None:
    """What any other opcode takes from the stack and puts there; nothing that it makes is a text."""
    before, after = opcode.stack_before, opcode.stack_after
    if pickletools.markobject in before or (opcode.name == "POP" and marks and marks[-1] == len(stack)):
        del stack[marks.pop() if marks else 0 :]
        before = before[: before.index(pickletools.markobject)] if pickletools.markobject in before else []
    if before:
        del stack[max(len(stack) - len(before), 0) :]
    stack.extend([None] * len(after))


def _keep(argument: object, found: Scan) -> None:
    data = argument.encode("latin-1", "ignore") if isinstance(argument, str) else bytes(argument)  # type: ignore[call-overload]
    if data.startswith(_WITHIN) and len(found.within) < 100:
        found.within.append(data)


def _anywhere(data: bytes, start: int) -> Iterator[Global]:
    """Known harmful names behind the opcodes that import them, at any offset."""
    stop = min(len(data), start + MOST_SEARCHED)
    for match in _GLOBAL.finditer(data, start, stop):
        module, name = (g.decode("ascii") for g in match.groups())
        if harm(module, name):
            yield Global(module, name, match.start(), harm(module, name))
    for match in _STACK_GLOBAL.finditer(data, start, stop):
        m, module_bytes, n, name_bytes = match.groups()
        if m[0] == len(module_bytes) and n[0] == len(name_bytes):
            module, name = module_bytes.decode("ascii"), name_bytes.decode("ascii")
            if harm(module, name):
                yield Global(module, name, match.start(), harm(module, name))
