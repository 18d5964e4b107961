"""The pages in a real browser: nothing is cut off, axe finds nothing, the script works, and print holds all of it.

They need Debian's `chromium`, and playwright and axe-core from the test extra; without them these tests are skipped.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_support import CURVES, draw_found, of_many_classes, patched, report_of

from onnxspect.engine.report import as_html, as_many, as_patch_html, view

playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)")

WIDTHS = (390, 768, 1280)
#: Elements that reach beyond the window, or whose own content is clipped.
CUT_OFF = """() => {
  const width = document.documentElement.clientWidth, found = [];
  if (document.documentElement.scrollWidth > width) found.push("the page scrolls sideways");
  for (const e of document.querySelectorAll("main *, header *")) {
    const style = getComputedStyle(e), box = e.getBoundingClientRect();
    if (e.closest("svg") || e.closest("thead") && style.position !== "static" || !box.width || style.position === "absolute") continue;
    const hidden = e.closest("thead") && e.closest("thead").getBoundingClientRect().left < -100;
    if (!hidden && (box.right > width + 1 || box.left < -1)) found.push(`${e.tagName} ends at ${box.right}`);
    if (e.clientWidth && e.scrollWidth > e.clientWidth + 1 && style.overflowX !== "visible") found.push(`${e.tagName} is clipped`);
  }
  return found;
}"""
#: Every outcome, a long name, and words that must not be broken.
MANY = [
    {"path": p, "outcome": o, "p_value": v, "targets": list(t), "cause": c, "folder": f, "seconds": s, "accepted": a, "digest": ""}
    for p, o, v, t, c, f, s, a in (
        ("models/faces/resnet18_badnet_lower_right.onnx", "backdoored", 1.4e-7, ["7 (shoe)"], "class 7 is reached by less", "r-1", 402.0, False),
        ("models/gtsrb.onnx", "backdoored", 2e-4, ["14 (stop)", "17 (no entry)"], "classes 14 and 17 are reached by less", "r-2", 66.0, True),
        ("models/" + "x" * 90 + ".keras", "hostile", None, (), "it runs programs (os.system) in a Lambda layer", "", 0.4, False),
        ("models/broken.onnx", "failed", None, (), "took more than 3600 s (in neural-cleanse)", "r-3", 3600.0, False),
        ("models/text.onnx", "refused", None, (), "input ids of type int64 is no image", "", 0.9, False),
        ("models/few.onnx", "inconclusive", 0.4, (), "40 samples are too few for a verdict", "r-4", 12.0, False),
        ("models/digits.onnx", "clean", 1.0, (), "", "r-5", 4.4, False),
    )
]  # fmt: skip
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as p:
        made = p.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"]
        )  # root in a container has no other way
        yield made
        made.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One file a page."""
    folder = tmp_path_factory.mktemp("pages")
    draw_found(folder)
    draw_found(folder, 417)
    runs = [
        view.Listed(n, folder, report_of(v, hostile=True), "", True) for n, v in (("a", "backdoored"), ("b", "clean"))
    ]
    made = {
        "backdoored": as_html.render(report_of("backdoored", hostile=True), folder),
        "clean": as_html.render(report_of("clean"), folder),
        "inconclusive": as_html.render(report_of("inconclusive"), folder),
        "thousand": as_html.render(of_many_classes(), folder),
        "patch": as_patch_html.render(patched(facts=CURVES["epochs"])),
        "missed": as_patch_html.render(patched("verify", CURVES["trials"], holds=False, failures=["a trigger works"])),
        "runs": view.index_page([*runs, view.Listed("c", folder, None, "the run is damaged")]),
        "two runs": view.compare_page(*runs),
        "many": as_many.page(as_many.build(MANY, "runs", "1", "2026-01-02T03:04:05Z", 1)),
    }
    for name, page in made.items():
        (folder / f"{name}.html").write_text(page)
    return {name: folder / f"{name}.html" for name in made}


#: Pages by default; all with ONNXSPECT_FULL=1 (`make check-pages`).
FULL = os.environ.get("ONNXSPECT_FULL") == "1"
NAMES = (
    "backdoored",
    "patch",
    "many",
    *(("runs", "clean", "inconclusive", "thousand", "missed", "two runs") if FULL else ()),
)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_cut_off_and_axe_is_content(name: str, browser: Any, pages: dict[str, Path]) -> None:
    rules = (Path(axe.__file__).parent / "axe.min.js").read_text()
    for width in WIDTHS:
        for theme in (
            ("light", "dark") if width == WIDTHS[0] or FULL else ("light",)
        ):  # colours do not hang on the width
            context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
            page = context.new_page()
            said: list[str] = []
            asked: list[str] = []
            page.on("console", lambda m, said=said: said.append(m.text))
            page.on("pageerror", lambda e, said=said: said.append(str(e)))
            page.on("request", lambda r, asked=asked: asked.append(r.url.split(":")[0]))
            page.goto(pages[name].as_uri())
            assert page.evaluate(CUT_OFF) == [], (width, theme)
            if name != "thousand" or width == WIDTHS[0]:  # its rows are all alike, and axe looks at every one
                page.evaluate(rules)
                found = page.evaluate("tags => axe.run(document, {runOnly: tags})", TAGS)
                assert [(v["id"], v["nodes"][0]["target"]) for v in found["violations"]] == [], (width, theme)
            assert said == []
            assert set(asked) <= {"file", "data"}
            context.close()


def test_a_thousand_classes_fold_sort_and_can_be_searched(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page()
    page.goto(pages["thousand"].as_uri())
    rows = page.locator("table.live tbody tr:visible")
    assert rows.count() == 10
    assert "417" in rows.first.inner_text()
    page.get_by_role("button", name="Show all 1000").click()
    assert rows.count() == 1000
    heads = page.locator("table.live thead")
    heads.get_by_role("button", name="this model").click()
    values = [
        float(v) for v in page.locator("tbody td[data-label='this model']").evaluate_all("e => e.map(x => x.dataset.v)")
    ]
    assert values == sorted(values)
    assert heads.locator("[aria-sort=ascending]").count() == 1
    heads.get_by_role("button", name="this model").click()
    values = [
        float(v) for v in page.locator("tbody td[data-label='this model']").evaluate_all("e => e.map(x => x.dataset.v)")
    ]
    assert values == sorted(values, reverse=True)
    page.get_by_role("searchbox").fill("417 ")
    assert 1 <= rows.count() < 20
    assert page.get_by_role("status").inner_text() == f"{rows.count()} of 1000 shown"
    page.close()


def test_names_cannot_run(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page()
    opened: list[str] = []
    page.on("dialog", lambda d: opened.append(d.message))
    page.goto(pages["backdoored"].as_uri())
    assert page.locator("img[src^='https']").count() == 0
    page.evaluate(
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=alert(2)><b style=\"color:red\">b</b>')"
    )
    page.wait_for_timeout(100)
    assert opened == []  # the policy holds even for what would slip through the escaping
    page.close()


@pytest.mark.parametrize("name", ["backdoored", "patch", "many", "thousand"])
def test_print(name: str, browser: Any, pages: dict[str, Path], tmp_path: Path) -> None:
    """A PDF of a few pages whose every page is as wide as its sheet; with pdftotext its words are looked for, too."""
    page = browser.new_page(viewport={"width": 688, "height": 900})  # A4 less its margins
    page.goto(pages[name].as_uri())
    page.emulate_media(media="print")
    assert page.evaluate(CUT_OFF) == []
    path = tmp_path / "page.pdf"
    page.pdf(path=str(path), prefer_css_page_size=True, print_background=True)
    page.close()
    data = path.read_bytes()
    sheets = len(re.findall(rb"/Type\s*/Page\b", data))
    assert 2 <= sheets <= 12
    if shutil.which("pdftotext") is None:
        return
    import subprocess

    text = subprocess.run(["pdftotext", "-layout", str(path), "-"], capture_output=True, text=True, check=True).stdout
    flat = " ".join(text.split())
    for said in ("Words used here", "What to do now", "onnxspect"):
        assert said in flat
    assert "Search" not in flat.replace("Searches", "")  # tools are not printed


def test_without_script_everything_is_there(browser: Any, pages: dict[str, Path]) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(pages["thousand"].as_uri())
    assert page.locator("table.live tbody tr:visible").count() == 1000
    context.close()
