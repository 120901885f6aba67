from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.reporting.conftest import MadeReport

from unconv.reporting.data import printable
from unconv.reporting.page import SPARE
from unconv.reporting.text import number

Make = Callable[..., MadeReport]

NASTY = (
    "<script>alert('x')</script>.jpg",
    "\"quoted\" 'twice' `&amp;.png",
    "new\nline\r\ttab.png",
    "\udcff\udcfe bytes.jpg",
    "\u202egnp.exe",
    "</script><img src=x onerror=alert(1)>.png",
    "{{ 7 * 7 }} {% raw %}.png",
    "<!-- <script>.png",
    "x" * 300 + ".png",
    "\u2028 line separator.png",
)


class Page(HTMLParser):
    """A page taken apart."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self._inside: str | None = None
        self.source = file.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in self.raw:
            self.raw[tag].append("")
            self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        if tag == self._inside:
            self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.raw[self._inside][-1] += data
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def data(self) -> dict:
        return json.loads(self.raw["script"][0])

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def pictures(self) -> list[bytes]:
        uris = [image["src"] for image in self.all("img") if (image.get("src") or "").startswith("data:image/")]
        uris = [uri for uri in uris if uri and not uri.startswith("data:image/svg")]
        return [base64.b64decode(uri.split(",", 1)[1]) for uri in uris if uri]

    @property
    def summary(self) -> str:
        return unescape(self.source.partition('<p class="summary">')[2].partition("</p>")[0])


def page_of(report: MadeReport, **limits: int) -> Page:
    """Write a page and take it apart."""
    return Page(report.write(**limits))


def test_page_is_one_file_that_names_nothing_outside(make: Make) -> None:
    page = Page(make().write_all())
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in {"style", "srcset", "action", "formaction", "poster", "ping"}, (tag, name)
            if name in {"src", "href"}:
                assert value is not None
                assert value.startswith(("data:", "#")), (tag, value[:80])
    assert len(page.all("script")) == 2
    assert len(page.all("style")) == 1
    assert "url(" not in page.raw["style"][0]
    assert "@import" not in page.raw["style"][0]
    assert "Permission is hereby granted, free of charge" in page.raw["script"][1]


def test_policy_allows_exactly_the_pages_own_style_and_script(make: Make) -> None:
    page = page_of(make())
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))

    def source(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    assert rules == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": source(page.raw["style"][0]),
        "script-src": source(page.raw["script"][1]),
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_everything_from_files_is_escaped(make: Make) -> None:
    report = make(names=NASTY)
    plain = page_of(report)
    document = report.document
    document["model"] = {"name": NASTY[5], "weights": NASTY[0]}
    document["command"] = " ".join(NASTY)
    document["notes"] = list(NASTY)
    document["skipped_modules"] = [{"module": name, "reason": name} for name in NASTY]
    document["skipped_images"] = [{"file": name, "reason": name} for name in NASTY]
    report.config |= {name: {name: name} for name in NASTY}
    report.environment |= {name: [name] for name in NASTY}
    for layer in document["layers"]:
        layer["kind"] = NASTY[0]
        layer["inversion"] = [r | {"note": NASTY[i]} for i, r in enumerate(layer["inversion"])]
        if layer["block"]:
            layer["block"]["certificate"]["notes"] = [NASTY[5]]
            layer["block"]["name"] = NASTY[7]
    page = page_of(report)
    # the elements are those of the harmless page, but for rows of tables and lists
    free = {"tr", "td", "code", "div", "dt", "dd", "li", "ol", "p", "details", "summary", "dl", "span"}
    assert {tag for tag, _ in page.tags} - free == {tag for tag, _ in plain.tags} - free
    for tag in ("script", "img", "style", "option", "button", "section"):
        assert len(page.all(tag)) == len(plain.all(tag))
    for name in NASTY:
        shown = printable(name)
        assert " ".join(shown.split()) in page.text
        assert shown in [image["name"] for image in page.data["images"]]
    assert not any(ord(c) < 32 and c != "\n" for c in page.source)


def test_printable_shows_what_would_not_be_seen() -> None:
    assert printable("a\nb\t\x00") == "a\\nb\\t\\x00"
    assert printable("\u202eevil") == "\\u202eevil"
    assert printable("\udcff") == "\\xff"
    assert printable({"ü": ["日本", 3, None]}) == {"ü": ["日本", 3, None]}
    printable("".join(map(chr, range(0x11000)))).encode("utf-8")


def test_equal_data_give_equal_bytes(make: Make) -> None:
    report = make()
    first = report.write_all().read_bytes()
    assert report.write_all().read_bytes() == first
    assert first.count(b"data:image/svg+xml") == 2
    assert not list(report.run.rglob("*.part"))


def test_points_hold_means_and_ranges_and_whether_they_converged(make: Make) -> None:
    page = page_of(make())
    names = [series["name"] for series in page.data["series"]]
    assert names == [
        "linear decoder, features alone",
        "Gauss-Newton, features alone",
        "Gauss-Newton, with switches and gates",
    ]
    points = {(point["series"], point["layer"]): point for point in page.data["points"]}
    point = points[1, 2]
    assert [point[name] for name in ("relative_error", "psnr", "ssim")] == pytest.approx([0.70, 16, 0.30])
    assert point["spread"]["relative_error"] == pytest.approx([0.68, 0.72])
    assert (point["images"], point["failed"]) == (2, 0)
    assert point["state"] == "1 of 2 not converged after 64 passes"
    assert points[0, 2]["state"] == ""
    assert "1 of 2 not converged after 64 passes" in page.text


def test_range_of_many_images_leaves_out_the_extremes(make: Make) -> None:
    report = make()
    row = report.rows[0] | {"picture": None}
    report.rows = [row | {"image": n, "relative_error": n / 100} for n in range(101)]
    page = page_of(report)
    assert page.data["points"][0]["spread"]["relative_error"] == pytest.approx([0.05, 0.95])
    assert "5th to 95th percentile of the images" in page.text


def test_the_first_paragraph_answers_the_question(make: Make) -> None:
    report = make()
    first = page_of(report).summary
    assert "From features alone, the image is recognisable up to layer1: SSIM 0.800 and 26.0 dB there by Gauss" in first
    assert (
        "From layer2 on, it was not recovered within the budget: SSIM 0.400 and 18.0 dB there, SSIM 0.200 and" in first
    )
    assert "means over 2 images; at layer2 and fc the budget (at most 64 passes, 600 s) ended before" in first
    report.config["most_passes"] = 64
    all_made = page_of(report).summary
    assert "at layer2 and fc refinement had not converged after 64 passes, the most that a budget buys" in all_made
    report.document["stopped"] = True
    assert page_of(report).summary == first
    report.document["layers"][-1]["inversion"] = [
        r | {"no_gain": r["images"] - r["converged"]} for r in report.document["layers"][-1]["inversion"]
    ]
    apart = page_of(report).summary
    assert "at layer2 the budget (" in apart
    assert "; at fc more refinement gained nothing on reference images" in apart
    for layer in report.document["layers"]:
        layer["inversion"] = [r for r in layer["inversion"] if r["method"] == "linear"]
    assert "by linear decoders, which see only what is linear" in page_of(report).summary
    for layer in report.document["layers"]:
        layer["inversion"] = [r | {"ssim": 0.9, "converged": 2} for r in layer["inversion"]]
    assert "recognisable at every layer looked at" in page_of(report).summary
    for layer in report.document["layers"]:
        layer["inversion"] = [r | {"ssim": 0.1} for r in layer["inversion"]]
    assert "recognisable at no layer looked at" in page_of(report).summary


def test_mean_colour_is_the_error_of_a_flat_picture(make: Make) -> None:
    report = make()
    wanted: dict[str, list[float]] = {"relative_error": [], "psnr": []}
    for n in range(2):
        x = np.asarray(Image.open(report.run / f"images/{n:04d}.png"), dtype=float) / 255
        difference = x - x.mean((0, 1))
        wanted["relative_error"].append(np.linalg.norm(difference / 0.25) / np.linalg.norm((x - 0.5) / 0.25))
        wanted["psnr"].append(-10 * math.log10((difference**2).mean()))
    found = page_of(report).data["baseline"]
    assert [found[name] for name in wanted] == pytest.approx([np.mean(v) for v in wanted.values()], rel=1e-4)
    report.config["preprocessing"] = {"function": "package:preset", "inverse": report.config["preprocessing"]}
    assert page_of(report).data["baseline"] == found
    report.config.pop("preprocessing")
    assert "relative_error" not in page_of(report).data["baseline"]


def test_theory_is_folded_with_a_sentence_each(make: Make) -> None:
    report = make()
    text = page_of(report).text
    for words in (
        "Theory of the conv blocks",
        "conv1.conv conv+relu+maxpool, 3 × 64 × 96 → 8 × 32 × 48",
        "50.0 70.0 0.500 Gaussian 0.100",
        "0.900 1.00 1.10 k = 40",
        "0.500 to 1.25 k = 40 0.250 to 0.375",
        "at least 1,500 of 6,000",
        "conv1 in the null space",
        "conv1.conv, layer1.conv: no bounds for one image.",
    ):
        assert words in text
    for layer in report.document["layers"][:2]:
        layer["block"] |= dict.fromkeys(("rip", "certificate"))
    text = page_of(report).text
    assert "RIP ratio" not in text
    assert "50.0 70.0 0.500 Gaussian 0.100" in text


def test_errors_that_are_expected_stand_beside_their_maps(make: Make) -> None:
    report = make()
    assert "expects its errors" not in page_of(report).text
    before = len(page_of(report).pictures())
    for row in report.rows:
        if row["method"] == "linear":
            row |= {"expected_error": 0.3, "error_map": row["picture"]}
    for layer in report.document["layers"]:
        layer["inversion"][0] |= {"expected_error": 0.3, "same_class": 0.5}
    page = page_of(report)
    assert "conv1 expected 0.300, true 0.100" in page.text
    assert "same class 50 %" in page.text
    assert len(page.pictures()) == before + 4 * 2 * 2


def test_what_no_attacker_gets_is_a_table_with_its_assumption(make: Make) -> None:
    entry = {"layer": "layer1", "noise": 0.1, "best": "refined", "psnr": {"bound": 31.0, "best": 25.5}}
    entry |= {"gap_db": 5.5, "bits_per_pixel": 1.25}
    notes = ["no time for bounds of fc; unconv unseen tiny-net --layer fc --relative-sigma 0.1"]
    found = page_of(make(leakage={"table": [entry], "assumption": "Assumed: Gaussian.", "notes": notes}))
    for words in ("layer1 0.1 31.0 25.5 refined 5.50 1.25", "Assumed: Gaussian.", *notes):
        assert words in found.text
    assert "What no attacker gets" not in page_of(make()).text


def test_remarks_and_failures_are_given(make: Make) -> None:
    report = make()
    report.document["layers"][1]["inversion"][0] |= {"failed": 1, "images": 1, "note": "NaN in one image"}
    text = page_of(report).text
    assert "1 of 2 failed" in text
    assert "NaN in one image" in text
    assert "0.250 [1]" in text


def test_numbers_that_are_none_are_dashes(make: Make) -> None:
    report = make()
    for record in report.document["layers"][0]["inversion"]:
        record |= {"relative_error": math.nan, "psnr": math.inf}
    page = page_of(report)
    assert "nan" not in page.text.lower().split()
    assert [(p["relative_error"], p["psnr"]) for p in page.data["points"] if p["layer"] == 0] == [(None, None)] * 3


@pytest.mark.parametrize("change", ["layers", "rows", "parts", "bare"])
def test_page_of_less(make: Make, change: str) -> None:
    report = make()
    if change == "layers":
        report.document["layers"] = []
    elif change == "rows":
        report.rows = []
    elif change == "bare":
        report.document = {"layers": [{"layer": "conv", "shape": [4, 8, 8], "kind": "Conv2d"}]}
        report.rows, report.config, report.environment = [], {}, {}
    else:
        for layer in report.document["layers"]:
            layer |= {"inversion": [], "linear": None, "block": None}
    page = page_of(report)
    assert "still know of the image?" in page.text
    assert page.summary
    assert len(page.data["layers"]) == len(report.document["layers"])


def test_images_without_pictures_count_but_are_not_shown(make: Make) -> None:
    report = make()
    report.rows = [row | ({"picture": None} if row["image"] else {}) for row in report.rows]
    page = page_of(report)
    assert [image["name"] for image in page.data["images"]] == ["cat.png"]
    assert "The first 1 of 2 images are shown" in page.text
    assert page.data["points"][0]["spread"]["relative_error"] == pytest.approx([0.08, 0.12])


def test_small_pictures_stay_exact_and_large_ones_shrink(make: Make) -> None:
    report = make()
    pictures = [Image.open(io.BytesIO(raw)) for raw in page_of(report).pictures()]
    assert {(p.format, p.size) for p in pictures} == {("PNG", (96, 64))}
    with Image.open(report.run / "images/0000.png") as original:
        assert pictures[0].tobytes() == original.convert("RGB").tobytes()
    Image.effect_noise((1600, 800), 40).convert("RGB").save(report.run / "images/0000.png")
    first = Image.open(io.BytesIO(page_of(report).pictures()[0]))
    assert (first.format, first.size) == ("JPEG", (256, 128))


def test_pictures_that_do_not_fit_are_left_out_and_counted(make: Make) -> None:
    report = make(names=tuple(f"{n}.png" for n in range(6)))
    whole = page_of(report)
    each = sum(len(base64.b64encode(raw)) for raw in whole.pictures()) / 6
    bare = len(whole.source.encode()) - 6 * each
    page = page_of(report, most=int(bare + 2.5 * each) + SPARE)
    assert [image["name"] for image in page.data["images"]] == ["0.png", "1.png"]
    assert "The first 2 of 6 images are shown" in page.text
    assert page.data["points"][0]["relative_error"] == pytest.approx(0.10)  # the means still count all six


def test_missing_damaged_and_foreign_pictures_are_named(make: Make) -> None:
    report = make()
    run = report.run
    (run.parent / "secret-0.png").write_bytes((run / "images/0000.png").read_bytes())
    (run / "images/0000-text.png").write_text("no picture")
    (run / "images/0000-cut.png").write_bytes((run / "images/0000.png").read_bytes()[:300])
    paths = ("../secret-0.png", "images/0000-absent.png", "images/0000-text.png", "images/0000-cut.png")
    for row, path in zip(report.rows[1:], paths, strict=False):
        row["picture"] = path
    page = page_of(report)
    for path, reason in zip(paths, ("lies outside", "is not there", "is not a picture", "cannot be read"), strict=True):
        assert f"{path} {reason}" in page.text
    assert len(page.pictures()) == 2 * (1 + 12) - 4 + 2


def test_numbers_have_three_digits() -> None:
    numbers = {
        0.3: "0.300",
        12345.6: "12,346",
        1e-6: "1.00e−6",
        0.0: "0",
        26.04: "26.0",
        999.96: "1,000",
        -0.5: "−0.500",
    }
    assert {value: number(value) for value in numbers} == numbers
    assert [number(v) for v in (None, 1500, [3, 8, 8], "x")] == ["–", "1,500", "3 × 8 × 8", "x"]
