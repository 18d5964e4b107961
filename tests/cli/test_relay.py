"""What a worker says reaches the terminal as text: no command to it passes, however the bytes are cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from onnxspect.cli.relay import Cleaner

HOSTILE = b"\x1b]0;title\x07\x1b[2J\x1b[1;1HCLEAN\x08\x9b\xc2\x9b31m\x00\x1bc\x1b[6n"


def cleaned(data: bytes, terminal: bool, cut: int = 1 << 20) -> bytes:
    cleaner = Cleaner(terminal)
    pieces = [data[i : i + cut] for i in range(0, len(data), cut)]
    return b"".join([*(cleaner.clean(p) for p in pieces), cleaner.clean(b"", last=True)])


def test_text_and_colours_pass() -> None:
    text = "Größe\t\u4e2d\n\x1b[1;32mPROVEN\x1b[0m\n".encode()
    assert cleaned(text, terminal=False) == text
    assert cleaned(text, terminal=True, cut=1) == text


def test_commands_do_not() -> None:
    for terminal in (False, True):
        for cut in (1, 3, 1 << 20):
            found = cleaned(HOSTILE, terminal, cut)
            assert b"\x1b" not in found
            assert b"\x07" not in found
            assert b"\xc2\x9b" not in found
            assert b"CLEAN" in found


def test_a_progress_bar_is_redrawn_on_a_terminal_only() -> None:
    bar = b"\r\x1b[2K\x1b[1A\x1b[?25l 3/10"
    assert cleaned(bar, terminal=True, cut=2) == bar
    assert b"\x1b" not in cleaned(bar, terminal=False)


@given(st.binary(max_size=60), st.integers(1, 10))
def test_how_the_stream_is_cut_makes_no_difference(data: bytes, cut: int) -> None:
    assert cleaned(data, True, cut) == cleaned(data, True)
