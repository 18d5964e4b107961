"""Progress in a notebook: what is drawn, how often, and that nothing of the kind happens elsewhere."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from onnxspect.engine.report.progress import Bars, NotebookProgress, in_notebook, watched
from onnxspect.engine.run import Silent


class Output:
    """A notebook's output below a cell: what was drawn there, one after the other."""

    def __init__(self) -> None:
        self.drawn: list[Bars] = []

    def display(self, shown: Any) -> Output:
        self.drawn.append(shown)
        return self

    def update(self, shown: Any) -> None:
        self.drawn.append(shown)


def test_bars_follow_the_work() -> None:
    output, now = Output(), [0.0]
    seen = NotebookProgress(output.display, lambda: now[0])
    seen.notice("preprocessing: 0..1")
    seen.start("neural-cleanse", 4, done=1)
    assert output.drawn[-1].tasks == (("neural-cleanse", 1, 4, ""),)
    seen.advance("neural-cleanse", "class 2: l1 3.1")  # at once after another drawing: seen with the next one
    assert output.drawn[-1].tasks[0][1] == 1
    now[0] += 1
    seen.advance("neural-cleanse", "class 3: l1 9")
    assert output.drawn[-1].tasks == (("neural-cleanse", 3, 4, "class 3: l1 9"),)
    seen.finish("neural-cleanse")
    assert output.drawn[-1] == Bars(("preprocessing: 0..1",), ())
    seen.advance("unknown")
    assert len(output.drawn) == 4


def test_the_last_notices_stay() -> None:
    output = Output()
    seen = NotebookProgress(output.display)
    for i in range(20):
        seen.notice(f"notice {i}")
    assert output.drawn[-1].notices == tuple(f"notice {i}" for i in range(12, 20))


def test_what_is_shown_is_escaped() -> None:
    bars = Bars(("a <script>",), (("<b>", 1, 0, "class <i>"),))
    page = bars._repr_html_()
    assert '<progress value="1" max="1"></progress> 1/0' in page
    assert "a &lt;script&gt;" in page
    assert not {"<script>", "<b>", "<i>"} & {page[i : i + n] for i in range(len(page)) for n in (3, 8)}
    assert repr(bars) == "a <script>\n<b> 1/0 class <i>"


@pytest.mark.parametrize(
    ("shell", "there"),
    [(None, False), (SimpleNamespace(), False), (SimpleNamespace(kernel=object()), True)],
    ids=["no shell", "terminal", "notebook"],
)
def test_only_a_notebook_gets_bars(shell: object, there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))  # type: ignore[arg-type]
    assert in_notebook() is there
    assert isinstance(watched().observer, NotebookProgress if there else Silent)


def test_elsewhere_nothing_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not in_notebook()
    assert isinstance(watched().observer, Silent)
    assert watched().seed == 0
