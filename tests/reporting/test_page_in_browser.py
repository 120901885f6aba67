"""The page as a reader meets it: in headless Chromium, by mouse and by keyboard, at both widths, in both schemes."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.reporting.conftest import MadeReport

from unconv.reporting.text import number

playwright = pytest.importorskip(
    "playwright.sync_api", reason="no Playwright, so the page is not tried in a browser; pip install 'unconv[e2e]'"
)

NAMES = ("<b>cat</b>.png", "a" * 200 + ".png")
CHOICES = ("Image", "Layer", "Recovered", "From", "Side information", "Method")


@pytest.fixture(scope="module")
def file(built: Callable[..., MadeReport], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("report"), names=NAMES).write_all()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine, so the page is not tried in a browser")
    with playwright.sync_playwright() as started:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        chromium = started.chromium.launch(executable_path=program, args=arguments, timeout=120_000)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Any, file: Path) -> Iterator[Callable[..., Any]]:
    """Opens the page; afterwards nothing has been complained of, and nothing but the file asked for."""
    pages, said, asked = [], [], []

    def build(width: int = 1400, scheme: str = "light", **options: Any) -> Any:
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
        page.set_default_timeout(60_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        pages.append(page)
        return page

    yield build
    for page in pages:
        page.close()
    assert said == []
    assert {url for url in asked if not url.startswith("data:")} == {file.as_uri()}


def text(page: Any, name: str) -> str:
    return page.locator(f"#{name}").inner_text()


def chooser(page: Any, name: str) -> Any:
    return page.get_by_role("combobox", name=name, exact=True)


def order(page: Any, table: int) -> list[str]:
    return page.locator("table.data").nth(table).locator("tbody th").all_inner_texts()


def test_it_opens_with_the_deepest_recognisable_layer(open_page: Callable[..., Any]) -> None:
    page = open_page()
    assert "<b>cat</b>.png, layer1: Gauss-Newton, features alone" in text(page, "caption")
    assert "relative error 0.180" in text(page, "caption")
    assert page.locator("#plot canvas").count() == 1
    chosen = page.locator(".cell[aria-current] img:not([hidden])")
    assert page.locator("#reconstruction").get_attribute("src") == chosen.get_attribute("src")


def test_image_layer_side_information_and_method_are_chosen(open_page: Callable[..., Any]) -> None:
    page = open_page()
    recovered = page.locator("#reconstruction")
    before = recovered.get_attribute("src")
    chooser(page, "Image").select_option("1")
    assert "relative error 0.220" in text(page, "caption")
    assert recovered.get_attribute("src") != before
    chooser(page, "Method").select_option(label="linear decoder")
    assert "linear decoder, features alone" in text(page, "caption")
    assert "relative error 0.270" in text(page, "caption")
    assert "linear decoder, features alone" in text(page, "sheet-of")
    page.get_by_role("button", name="Previous layer").click()
    assert "conv1" in text(page, "caption")
    assert number(0.12) in text(page, "readout")
    chooser(page, "Side information").select_option(label="with switches and gates")
    assert "Gauss-Newton, with switches and gates" in text(page, "caption")
    assert chooser(page, "Method").input_value() == "gauss-newton"
    chooser(page, "Layer").select_option(label="fc")
    assert text(page, "status").endswith("fc, Gauss-Newton, with switches and gates, relative error 0.720")
    assert "Here, 1 of 2 not converged after 64 passes." in text(page, "plot-note")
    chooser(page, "Show").select_option(label="PSNR (dB)")
    assert text(page, "plot-title") == "PSNR by layer"


def test_the_wipe_follows_the_pointer(open_page: Callable[..., Any]) -> None:
    page = open_page()
    box = page.locator("#frame").bounding_box()

    def seen() -> str:
        return page.locator("#recovered").evaluate("e => getComputedStyle(e).clipPath")

    assert seen() == "inset(0px 0px 0px 50%)"
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 20)
    page.mouse.up()
    assert float(re.findall(r"([\d.]+)%", seen())[0]) == pytest.approx(25, abs=0.5)
    page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + 20)
    assert float(re.findall(r"([\d.]+)%", seen())[0]) == pytest.approx(25, abs=0.5)
    page.get_by_role("button", name="Side by side").click()
    left, right = (page.locator(name).bounding_box() for name in ("#original", "#recovered"))
    assert left["x"] + left["width"] <= right["x"] + 1


def test_tables_sort_together_and_back(open_page: Callable[..., Any]) -> None:
    page = open_page()
    layers = ["conv1", "layer1", "layer2", "fc"]
    page.locator("summary").filter(has_text="Sparsity").click()
    assert order(page, 0) == layers
    heading = page.locator("table.data").first.get_by_role("button", name="linear decoder, features alone")
    heading.click()
    assert order(page, 0) == layers
    assert page.locator("th:has(:focus)").get_attribute("aria-sort") == "ascending"
    assert page.locator("th[aria-sort=ascending], th[aria-sort=descending]").count() == 1
    assert "ascending" in text(page, "status")
    heading.click()
    assert order(page, 0) == layers[::-1]
    assert order(page, 1) == ["layer1", "conv1"]
    assert page.locator("th:has(:focus)").get_attribute("aria-sort") == "descending"


def test_everything_is_reached_and_worked_by_keyboard(open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text() == "Skip to the report"
    assert page.locator(":focus").bounding_box()["x"] >= 0
    reached, unseen = [], []
    for _ in range(60):
        page.keyboard.press("Tab")
        focus = page.evaluate(
            """() => { const e = document.activeElement, s = getComputedStyle(e);
            return [e.id || e.className, s.outlineStyle, parseFloat(s.outlineWidth), e.offsetWidth]; }"""
        )
        if focus[1] == "none" or not focus[2] or not focus[3]:
            unseen.append(focus)
        reached.append(focus[0])
        if focus[0] == "sort":
            break
    assert unseen == []
    for name in ("image", "layer", "previous", "choice-2", "choice-3", "wipe", "plot", "metric", "log", "cell"):
        assert name in reached, reached

    page.keyboard.press("Enter")
    assert page.locator("th[aria-sort=ascending]").count() == 1
    page.keyboard.press("Space")
    assert order(page, 0) == ["fc", "layer2", "layer1", "conv1"]
    page.keyboard.press("Space")

    page.locator("#plot").focus()
    page.keyboard.press("Home")
    assert text(page, "status").startswith("<b>cat</b>.png, conv1, Gauss-Newton")
    assert page.locator("#plot").get_attribute("aria-valuenow") == "1"
    page.keyboard.press("ArrowRight")
    assert page.locator("#plot").get_attribute("aria-valuetext").startswith("layer1: Gauss-Newton")

    page.locator("#wipe").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert page.locator("#wipe").get_attribute("aria-valuetext") == "53 % original"
    assert page.locator("#recovered").evaluate("e => getComputedStyle(e).clipPath").endswith("53%)")

    page.locator(".cell[aria-current]").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert text(page, "status").startswith("a" * 200 + ".png, layer2")
    assert page.locator('.cell[tabindex="0"]').count() == 1
    assert page.locator(":focus").get_attribute("aria-current") == "true"


def test_a_screen_reader_hears_names_roles_and_changes(open_page: Callable[..., Any]) -> None:
    page = open_page()
    for name in CHOICES:
        assert chooser(page, name).count() == 1, name
    assert page.get_by_role("slider", name="Layer", exact=True).count() == 1
    assert page.get_by_role("slider", name="Wipe: how much of the original is shown").count() == 1
    assert page.get_by_role("status").get_attribute("id") == "status"
    assert page.get_by_role("main").count() == page.get_by_role("heading", level=1).count() == 1
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, img, [role], section")]
        .filter((e) => !(e.getAttribute("aria-label") || e.getAttribute("aria-labelledby") || e.alt || e.labels?.length
            || e.textContent.trim() || e.role === "status" || e.hidden)).map((e) => e.outerHTML.slice(0, 120))"""
    )
    assert nameless == []
    levels = [int(tag[1]) for tag in page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(e => e.tagName)")]
    assert all(after <= before + 1 for before, after in pairwise(levels)), levels


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_it_fits_its_window_and_reads_in_both_schemes(open_page: Callable[..., Any], width: int, scheme: str) -> None:
    page = open_page(width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.body.scrollWidth") <= width
    pixels = Image.open(io.BytesIO(page.screenshot())).convert("L")
    assert (pixels.getpixel((2, 2)) < 60) is (scheme == "dark")
    for name in (".summary", ".lead", ".note", ".data tbody td", ".link", "figcaption", ".sort", ".views button"):
        assert contrast(page, name) >= 4.5, name
    # no heading cell stands taller than a few lines, however narrow the window
    assert page.evaluate("Math.max(...[...document.querySelectorAll('.data thead tr')].map(e => e.offsetHeight))") < 110


def test_it_prints_on_white_with_everything_that_is_not_a_control(open_page: Callable[..., Any]) -> None:
    page = open_page(700, "dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    for name in ("#controls", "#wipe", ".skip", ".hint >> nth=0", "#metric"):
        assert not page.locator(name).is_visible(), name
    for name in ("#original", "#plot canvas", "#sheet", "table.data >> nth=0", ".terms"):
        assert page.locator(name).is_visible(), name
    assert page.evaluate("document.documentElement.scrollWidth") <= 700
    assert page.evaluate("getComputedStyle(document.querySelector('.data thead')).display") == "table-header-group"
    assert page.pdf(prefer_css_page_size=True)[:5] == b"%PDF-"


def test_without_script_the_tables_are_there(open_page: Callable[..., Any]) -> None:
    page = open_page(java_script_enabled=False)
    assert "Choosing, wiping, sorting and the live plot need JavaScript" in page.locator("noscript").inner_text()
    assert not page.locator("#controls").is_visible()
    assert page.locator("table.data").first.is_visible()


def test_policy_stops_what_escaping_would_have_let_through(browser: Any, file: Path, tmp_path: Path) -> None:
    hostile = "<script>window.broken = 1</script><img src='https://example.invalid/x.png' onerror='window.broken = 2'>"
    copy = tmp_path / "report.html"
    copy.write_text(file.read_text(encoding="utf-8").replace("<main", hostile + "<main", 1), encoding="utf-8")
    page, left = browser.new_page(), []
    page.on("response", lambda response: left.append(response.url))
    page.on("requestfailed", lambda request: stopped.append((request.url, request.failure)))
    stopped: list[tuple[str, str]] = []
    page.goto(copy.as_uri())
    assert page.evaluate("window.broken === undefined")
    assert [url for url in left if not url.startswith(("data:", "file:"))] == []
    assert all(failure == "csp" for _, failure in stopped), stopped
    page.close()


def contrast(page: Any, selector: str) -> float:
    """Ratio of the luminances of an element's text and of the first opaque background behind it (WCAG 2)."""
    front, back = page.locator(selector).first.evaluate(
        """e => { const front = getComputedStyle(e).color;
        while (e && getComputedStyle(e).backgroundColor.endsWith(", 0)")) e = e.parentElement;
        return [front, getComputedStyle(e).backgroundColor]; }"""
    )
    lighter, darker = sorted((luminance(front), luminance(back)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    channels = [int(v) / 255 for v in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear))
