"""The page in a real browser: it fits, it can be read, its filters work, it needs no network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from latentwire.core.json_files import read_jsonl, write_jsonl
from latentwire.report.page import write_report
from tests.artifacts import ANSWERS, CONTEXT, SPANS, run_folder

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
SIZES = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}
FAINT = """() => {
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const parse = (text) => (numbers(text).length > 3 ? numbers(text) : [...numbers(text), 1]);
  const over = (top, below) => below.slice(0, 3).map((b, i) => top[i] * top[3] + b * (1 - top[3]));
  const behind = (node) => {
    if (!node) return [255, 255, 255];
    const own = parse(getComputedStyle(node).backgroundColor);
    return own[3] === 1 ? own : over(own, behind(node.parentElement));
  };
  const light = (color) => {
    const [r, g, b] = color.map((v) => (v / 255 <= 0.04045 ? v / 3294.6 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const out = [];
  for (const node of document.body.querySelectorAll("*")) {
    const said = [...node.childNodes].filter((n) => n.nodeType === 3).map((n) => n.textContent.trim()).join("");
    if (!said || !node.checkVisibility() || node.closest("script, style, title")) continue;
    const style = getComputedStyle(node), back = behind(node);
    const a = light(over(parse(node.namespaceURI.endsWith("svg") ? style.fill : style.color), back)), b = light(back);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) out.push(said.slice(0, 30) + " " + ratio.toFixed(2));
  }
  return out;
}"""
"""Texts whose contrast with what lies behind them is below the 4.5 of WCAG 2.2 (1.4.3)."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is on the PATH")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page of two runs, the second with enough questions for several screens of them."""
    base = tmp_path_factory.mktemp("report")
    runs = [run_folder(base / "first"), run_folder(base / "second", 0.5)]
    lines = (runs[1] / "predictions.jsonl").read_text()
    (runs[1] / "predictions.jsonl").write_text(lines * 6)
    write_report(runs, base)
    return (base / "report.html").as_uri()


def opened(browser: Any, address: str, size: str = "desktop", scheme: str = "light") -> Any:
    page = browser.new_context(viewport=SIZES[size], color_scheme=scheme).new_page()
    page.troubles = []
    page.on("console", lambda message: page.troubles.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: page.troubles.append(str(error)))
    page.on("request", lambda request: None if request.url == address else page.troubles.append(request.url))
    page.goto(address)
    return page


def questions(page: Any) -> list[str]:
    return page.locator("#list article h3").all_inner_texts()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_it_fits_and_can_be_read(browser: Any, address: str, size: str, scheme: str) -> None:
    page = opened(browser, address, size, scheme)
    for summary in page.locator("summary").all():  # everything that can be unfolded, inner ones as they appear
        if summary.is_visible() and not summary.evaluate("node => node.parentElement.open"):
            summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") == SIZES[size]["width"]
    assert page.evaluate(FAINT) == []
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    unnamed = "[...document.querySelectorAll('select, input, button')].filter((n) => !n.labels.length && !n.innerText)"
    assert page.evaluate(f"{unnamed}.length") == 0
    for chart in page.locator("svg[role=img]").all():
        assert chart.bounding_box()["width"] > 250
    assert page.troubles == []


def test_the_filters_find_wins_losses_and_words(browser: Any, address: str) -> None:
    page = opened(browser, address)
    lives, colour, sells, often = ANSWERS
    assert questions(page) == list(ANSWERS) and page.locator("#count").inner_text() == "4 of 4 questions"
    assert page.locator("select[name=against]").input_value() == "text_tuned"
    for chosen, expected in (
        ("win", [lives]),
        ("loss", [colour]),
        ("right", [sells]),
        ("wrong", [often]),
        ("attention", [lives, colour]),
        ("all", list(ANSWERS)),
    ):
        page.select_option("select[name=outcome]", chosen)
        assert questions(page) == expected, chosen
    assert page.locator("article.win .verdict").inner_text() == "latents better"
    assert "</script><b>blue" in page.locator("article.loss").inner_text()
    page.fill("input[name=search]", "BLUE colour")
    assert questions(page) == [colour]
    page.fill("input[name=search]", "red</b> lamps 🏮")  # of the passage
    assert questions(page) == list(ANSWERS)
    page.fill("input[name=search]", "nowhere")
    assert questions(page) == [] and page.locator("#count").inner_text() == "0 of 4 questions"
    page.fill("input[name=search]", "")
    page.select_option("select[name=receiver]", "b")
    assert page.locator("select[name=against]").input_value() == "text" and len(questions(page)) == 4
    assert page.troubles == []


def test_without_both_answers_there_is_no_verdict(browser: Any, tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    rows = read_jsonl(folder / "predictions.jsonl")
    for row in rows[1:]:
        del row["a"]["latent"]
    write_jsonl(folder / "predictions.jsonl", rows)
    write_report([folder], tmp_path)
    page = opened(browser, (tmp_path / "report.html").as_uri())
    assert len(questions(page)) == 4
    assert page.locator(".verdict").all_inner_texts() == ["latents better"] and page.troubles == []


def test_passages_show_what_each_latent_covers_and_gets(browser: Any, address: str) -> None:
    page = opened(browser, address)
    top, *_, last = page.locator("article").all()
    windows = top.locator(".window")
    assert windows.all_text_contents() == [CONTEXT[first:end] for first, end in SPANS]
    shades = windows.evaluate_all("nodes => nodes.map((n) => Number(n.style.getPropertyValue('--a')))")
    assert shades == pytest.approx([0.0275, 0.55, 0.1375, 0.11], abs=1e-3)
    assert windows.nth(1).get_attribute("title") == "latent 2: 20.0 % of attention"
    top.get_by_text("What each latent covers").click()
    assert "Orlin near the river." in top.locator("[role=row]").nth(1).inner_text()
    assert not last.locator(".window").first.is_visible()  # without attention it is folded up
    last.locator("summary").first.click()
    assert last.locator(".window").first.is_visible() and page.troubles == []


def test_runs_and_pages_by_keyboard(browser: Any, address: str) -> None:
    page = opened(browser, address, "phone")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.locator("select[name=run]").focus()
    page.keyboard.press("ArrowDown")
    assert page.locator("#count").inner_text() == "24 of 24 questions" and len(questions(page)) == 10
    for count in (20, 24):
        page.locator("#more").focus()
        page.keyboard.press("Enter")
        assert len(questions(page)) == count
    assert page.locator("#more").is_hidden() and page.troubles == []
