from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from unconv.reporting import page as page_module
from unconv.reporting.data import (
    SIDE_INFO,
    Point,
    ReportData,
    Series,
    curves,
    main_series,
    printable,
    short_names,
    worst_stage,
)
from unconv.reporting.page import write_page
from unconv.reporting.text import number, significant, spread_words, summary

Make = Callable[..., tuple[ReportData, Path]]

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
        uris = [image["src"] for image in self.all("img") if image.get("src")]
        return [base64.b64decode(uri.split(",", 1)[1]) for uri in uris if uri]


def certificate(**changes: object) -> dict[str, object]:
    """What is proven of a stage, as a survey says it."""
    bracket: dict[str, object] = {"k": 1234, "lower": 1.5, "upper": 4.5, "ratio": 3.0, "how": "spectral"}
    layer: dict[str, object] = {
        "known": "switches",
        "images": 2,
        "equations": 500,
        "unknowns": 2000,
        "undetermined": 1500,
        "exact": False,
        "sigma": {"lower": 0.25, "upper": 0.375},
        "moves": {"lower": 2.7, "upper": 4.0},
    }
    document: dict[str, object] = {
        "delta_k": bracket,
        "delta_2k": bracket | {"lower": 2.25, "ratio": 2.0},
        "proven_k": 3,
        "layer": layer,
        "image": layer | {"unknowns": 192, "undetermined": 0, "exact": True, "sigma": {"lower": 0.0, "upper": 0.0123}},
        "images": [],
        "direction": None,
        "notes": [],
        "words": "Vacuous, in words.",
    }
    return document | changes


def point(error: float | None) -> Point:
    return Point({"relative_error": error, "psnr": None, "ssim": None}, {}, None, 1, 0, None)


def test_page_is_one_file_that_names_nothing_outside(make: Make) -> None:
    page = Page(write_page(*make()))
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


def test_policy_allows_exactly_the_pages_own_style_and_script(make: Make) -> None:
    page = Page(write_page(*make()))
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
    data, run = make(names=NASTY)
    plain = Page(write_page(data, run))
    hostile = replace(
        data,
        model=NASTY[5],
        weights=NASTY[0],
        command=" ".join(NASTY),
        config={name: {name: name} for name in NASTY},
        environment={name: [name] for name in NASTY},
        skipped_modules=[{"module": name, "reason": name} for name in NASTY],
        skipped_images=[{"file": name, "reason": name} for name in NASTY],
        stages=[
            s | {"kind": NASTY[0], "certificate": certificate(notes=[NASTY[0]], words=NASTY[5])} for s in data.stages
        ],
    )
    for stage in hostile.stages:
        stage["inversion"] = [r | {"note": NASTY[i]} for i, r in enumerate(stage["inversion"])]
    page = Page(write_page(hostile, run))
    # the elements are those of the harmless page, but for rows of tables and lists
    free = {
        "tr",
        "td",
        "th",
        "code",
        "div",
        "dt",
        "dd",
        "li",
        "sup",
        "ol",
        "section",
        "h2",
        "table",
        "thead",
        "tbody",
        "button",
        "dl",
        "i",
        "p",
        "span",
    }
    assert {tag for tag, _ in page.tags} - free == {tag for tag, _ in plain.tags} - free
    for tag in ("script", "img", "style", "option"):
        assert len(page.all(tag)) == len(plain.all(tag))
    for name in NASTY:
        shown = " ".join(printable(name).split())
        assert shown in page.text
        assert printable(name) in [image["name"] for image in page.data["images"]]
    assert not any(ord(c) < 32 and c != "\n" for c in page.source)


def test_printable_shows_what_would_not_be_seen() -> None:
    assert printable("a\nb\t\x00") == "a\\nb\\t\\x00"
    assert printable("\u202eevil") == "\\u202eevil"
    assert printable("\udcff") == "\\udcff"
    assert printable({"ü": ["日本", 3, None]}) == {"ü": ["日本", 3, None]}
    printable("".join(map(chr, range(0x11000)))).encode("utf-8")


def test_equal_data_give_equal_bytes(make: Make) -> None:
    data, run = make()
    first = write_page(data, run).read_bytes()
    assert write_page(data, run).read_bytes() == first
    assert not list(run.glob("*.part"))


def test_points_hold_means_and_ranges(make: Make) -> None:
    data, _ = make()
    found = curves(data)[Series("image", "network", "min-norm", "switches")][2]
    assert found.error == pytest.approx(0.45)
    assert found.spread["relative_error"] == pytest.approx((0.43, 0.47))
    assert found.spread["ssim"] == pytest.approx((0.53, 0.57))
    assert (found.images, found.failed, found.seconds) == (2, 0, 0.5)


def test_range_of_many_images_leaves_out_the_extremes(make: Make) -> None:
    data, _ = make()
    record = data.pictures[0]["reconstructions"][0]
    many = [
        {"file": f"{n}.png", "original": None, "reconstructions": [record | {"relative_error": n / 100, "path": None}]}
        for n in range(101)
    ]
    data = replace(data, pictures=many)
    low, high = curves(data)[Series.of(record)][0].spread["relative_error"]
    assert (low, high) == pytest.approx((0.05, 0.95))
    assert spread_words(data) == "5th to 95th percentile of the images"


def test_script_draws_the_numbers_of_the_data(make: Make) -> None:
    data, run = make()
    payload = Page(write_page(data, run)).data
    keys = [tuple(series["key"]) for series in payload["series"]]
    assert keys == [
        ("image", "network", "switches", "transpose"),
        ("image", "network", "switches", "min-norm"),
        ("image", "network", "gates", "min-norm"),
    ]
    points = {(keys[k][3], keys[k][2], i): values for k, i, values, *_ in payload["points"]}
    assert {i: points["min-norm", "gates", i][0] for i in range(3)} == {0: 0.05, 1: 0.15, 2: 0.30}
    assert len(points) == 9
    first = {(k, i): error for k, i, error, *_ in payload["images"][0]["values"]}
    assert first[0, 2] == pytest.approx(0.88)
    # the page opens at the best series, and at the stage where its error rises most
    assert payload["start"] == {"series": 2, "stage": 2}


def test_summary_says_what_the_numbers_say(make: Make) -> None:
    data, _ = make()
    said = " ".join(summary(data))
    assert "each of 3 stages leaves, the network’s input was recovered for 2 images" in said
    assert "Minimum norm with switches and gates known comes closest on average" in said
    assert "below 1" not in said
    assert "goes from 0.050 at features.0 to 0.300 at features.7" in said
    assert "The stage that loses most is features.7, where the error rises from 0.150 to 0.300" in said
    assert "0.450 with switches known (minimum norm) and 0.300 with switches and gates known (minimum norm)" in said
    assert "0.800 to 0.900 by transpose and 0.050 to 0.450 by minimum norm" in said
    assert "Left out, for the reasons given below: 1 image and 1 module of the network." in said


def test_summary_says_where_nothing_beats_a_blank_answer(make: Make) -> None:
    data, _ = make()
    worse = [
        stage | {"inversion": [r | {"relative_error": r["relative_error"] + 0.9 * (i > 0)} for r in stage["inversion"]]}
        for i, stage in enumerate(data.stages)
    ]
    assert "From features.3 on, no mean error is below 1." in summary(replace(data, stages=worse))


def test_summary_of_layers_names_the_worst_and_the_best(make: Make) -> None:
    data, _ = make()
    errors = iter((0.3, 0.7, 0.5))
    stages = [
        stage | {"inversion": [stage["inversion"][1] | {"from": "layer", "relative_error": next(errors)}]}
        for stage in data.stages
    ]
    said = " ".join(summary(replace(data, stages=stages, pictures=[])))
    assert "loses most is features.3, with a mean relative error of 0.700, and features.0 loses least" in said


def test_group_that_reaches_most_stages_opens_the_page() -> None:
    image, layer = Series("image", "network", "a", "none"), Series("layer", "network", "a", "none")
    better = Series("layer", "network", "b", "none")
    lines = {image: {0: point(0.1)}, layer: {0: point(0.5), 1: point(0.5)}, better: {0: point(0.4), 1: point(0.5)}}
    assert main_series(lines) == better
    assert main_series({**lines, image: {0: point(0.1), 1: point(0.9)}}) == image
    assert main_series({}) is None


def test_stage_that_loses_most() -> None:
    points = {0: point(0.3), 1: point(0.4), 3: point(0.8), 2: point(None), 4: point(0.9)}
    assert worst_stage(points, from_image=True) == 3
    assert worst_stage(points, from_image=False) == 4
    assert worst_stage({}, from_image=True) is None


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.12345, 3, "0.123"),
        (1.5, 3, "1.500"),
        (0.01, 3, "0.010"),
        (0.00123, 3, "0.0012"),
        (0.0, 3, "0.000"),
        (-0.25, 2, "−0.25"),
        (1.23e-9, 3, "1.2e−9"),
        (21.37, 1, "21.4"),
        (None, 3, "–"),
    ],
)
def test_number(value: float | None, digits: int, text: str) -> None:
    assert number(value, digits) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (41.5012, "41.5"),
        (118.4, "118"),
        (12345.6, "12,346"),
        (0.04, "0.0400"),
        (2.0, "2.00"),
        (1.234e-7, "1.23e−7"),
        (None, "–"),
    ],
)
def test_significant_digits(value: float | None, text: str) -> None:
    assert significant(value) == text


def test_names_are_shown_without_what_they_share() -> None:
    assert short_names(["features.0", "features.3"]) == ("features.", ["0", "3"])
    assert short_names(["layer1.0.conv1", "layer1.1.conv1"]) == ("layer1.", ["0.conv1", "1.conv1"])
    assert short_names(["conv", "layer1.conv"]) == ("", ["conv", "layer1.conv"])
    assert short_names(["features.0"]) == ("", ["features.0"])


def test_tables_hold_every_stage_and_measure(make: Make) -> None:
    data, run = make()
    text = Page(write_page(data, run)).text
    assert "How invertible is tiny-net?" in text
    for words in (
        "3 × 16 × 24",
        "8 × 8 × 12",
        "conv+relu+maxpool",
        "0.43",
        "0.47",
        "12.0 dB",
        "0.900",
        "unconv report",
    ):
        assert words in text
    assert "head" in text
    assert "a linear layer" in text
    assert "broken.jpg" in text
    assert "tiny.safetensors (SHA-256 00ff)" in text
    assert "preprocessing.size" in text
    assert "Gaussian" in text


def with_certificates(data: ReportData, **changes: object) -> ReportData:
    return replace(data, stages=[stage | {"certificate": certificate(**changes)} for stage in data.stages])


def test_certificates_are_a_row_and_a_sentence_per_stage(make: Make) -> None:
    data, run = make()
    page = Page(write_page(with_certificates(data), run))
    assert page.text.count("Vacuous, in words.") == 3
    for words in (
        "1,234",
        "1.50 to 4.50",
        "ratio 3.00",
        "2.25 to 4.50",
        "0.250 to 0.375",
        "at least 1,500 undetermined (75 %)",
        "at most 0.0123",
        "500 equations, 192 unknowns",
        "The maps are those of the first 2 images",
        "δₖ, δ₂ₖ",
    ):
        assert words in page.text
    facts = dict(page.data["stages"][0]["facts"])
    assert facts["δₖ, attained to proven"] == "1.50 to 4.50"
    assert facts["σ, image"] == "at most 0.0123"
    assert "Certificates" not in Page(write_page(data, run)).text


def test_what_could_not_be_certified_is_a_note_on_its_row(make: Make) -> None:
    data, run = make()
    missing = dict.fromkeys(("delta_k", "delta_2k", "proven_k", "layer", "image", "direction"))
    failed = certificate(**missing, words="", notes=["no bracket of delta: filter 2 of 16 is zero"])
    stages = [data.stages[0] | {"certificate": failed}, data.stages[1] | {"certificate": certificate()}, data.stages[2]]
    page = Page(write_page(replace(data, stages=stages), run))
    assert "filter 2 of 16 is zero." in page.text
    assert page.text.count("Vacuous, in words.") == 1
    rows = [attributes for attributes in page.all("tr") if attributes.get("data-stage")]
    assert len(rows) % 3 == 0


def test_a_direction_is_shown_with_what_it_is(make: Make) -> None:
    data, run = make()
    before = len(Page(write_page(data, run)).pictures())
    direction = {"picture": "images/0-0-0.png", "undetermined": True, "gain": 0.5, "largest": 10.0}
    shares = {"share_of_image": 0.825, "share_of_code": 0.0592}
    page = Page(write_page(with_certificates(data, direction=direction | shares), run))
    # one file for three stages is embedded in each place
    assert len(page.pictures()) == before + 3
    assert (
        "held by the code: the part of the first image that is pictured has 82 % of its length and makes up 5.9 %"
        in page.text
    )
    exact = Page(write_page(with_certificates(data, direction=direction | {"gain": 1e-9}), run))
    assert "The picture is an undetermined direction" in exact.text
    seen = Page(write_page(with_certificates(data, direction=direction | {"undetermined": False}), run))
    assert (
        "The change pictured moves the code by 0.500 per unit of its length, the most visible one by 10.0." in seen.text
    )
    gone = with_certificates(data, direction=direction | {"picture": "images/absent.png"})
    assert "Vacuous, in words." in Page(write_page(gone, run)).text


def test_remarks_and_failures_are_given(make: Make) -> None:
    data, run = make()
    stages = list(data.stages)
    first, *others = stages[1]["inversion"]
    stages[1] = stages[1] | {"inversion": [first | {"failed": 1, "images": 1, "note": "1 image gave NaN"}, *others]}
    text = Page(write_page(replace(data, stages=stages), run)).text
    assert "1 of 2 failed" in text
    assert "1 image gave NaN" in text


def test_numbers_that_are_none_are_dashes(make: Make) -> None:
    data, run = make()
    broken = [r | {"relative_error": math.nan, "psnr": math.inf} for r in data.stages[0]["inversion"]]
    stages = [data.stages[0] | {"inversion": broken, "activation": math.nan}, *data.stages[1:]]
    page = Page(write_page(replace(data, stages=stages), run))
    assert "nan" not in page.text.lower().split()
    assert {tuple(values) for _, i, values, *_ in page.data["points"] if i == 0} == {
        (None, None, r["ssim"]) for r in broken
    }


@pytest.mark.parametrize(
    "change",
    [
        {"stages": []},
        {"pictures": []},
        {
            "stages": [{"stage": "conv", "kind": "conv", "input_shape": [3, 8, 8], "code_shape": [4, 8, 8]}],
            "pictures": [],
        },
        {"skipped_images": [], "skipped_modules": []},
        {"config": {}, "environment": {}},
    ],
)
def test_page_of_less(make: Make, change: dict[str, object]) -> None:
    page = Page(write_page(*make(**change)))
    assert "How invertible is tiny-net?" in page.text
    assert page.data["stages"] == [] or page.data["stages"][0]["name"] in page.text


def test_images_without_pictures_count_but_are_not_shown(make: Make) -> None:
    data, run = make()
    hidden = data.pictures[1] | {
        "original": None,
        "reconstructions": [r | {"path": None} for r in data.pictures[1]["reconstructions"]],
    }
    page = Page(write_page(replace(data, pictures=[data.pictures[0], hidden]), run))
    assert [image["name"] for image in page.data["images"]] == ["cat.png"]
    assert "The first 1 of 2 images are shown" in page.text
    assert page.data["points"][0][3][0] == pytest.approx([0.78, 0.82])


def test_small_pictures_stay_exact_and_large_ones_shrink(make: Make) -> None:
    data, run = make()
    pictures = [Image.open(io.BytesIO(raw)) for raw in Page(write_page(data, run)).pictures()]
    assert {(p.format, p.size) for p in pictures} == {("PNG", (24, 16))}
    with Image.open(run / "images/0.png") as original:
        assert pictures[0].tobytes() == original.convert("RGB").tobytes()
    Image.effect_noise((1600, 800), 40).convert("RGB").save(run / "images/0.png")
    first = Image.open(io.BytesIO(Page(write_page(data, run)).pictures()[0]))
    assert (first.format, first.size) == ("JPEG", (512, 256))


def test_pictures_that_do_not_fit_are_left_out_and_counted(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    data, run = make(names=tuple(f"{n}.png" for n in range(6)), size=(60, 60))
    whole = Page(write_page(data, run))
    assert len(whole.data["images"]) == 6
    one = len(whole.source.encode()) - sum(len(base64.b64encode(raw)) for raw in whole.pictures())
    each = sum(len(base64.b64encode(raw)) for raw in whole.pictures()) / 6
    monkeypatch.setattr(page_module, "TEXT_BYTES", 0)
    monkeypatch.setattr(page_module, "PAGE_BYTES", int(one + 2.5 * each))
    file = write_page(data, run)
    page = Page(file)
    assert [image["name"] for image in page.data["images"]] == ["0.png", "1.png"]
    assert "The first 2 of 6 images are shown" in page.text
    assert file.stat().st_size <= one + 2.5 * each
    # the means still count all six
    assert page.data["points"][0][2][0] == pytest.approx(0.80)


def test_large_pictures_shrink_until_all_fit(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    data, run = make(size=(400, 300))
    full = write_page(data, run).stat().st_size
    monkeypatch.setattr(page_module, "TEXT_BYTES", 0)
    monkeypatch.setattr(page_module, "PAGE_BYTES", full // 2)
    page = write_page(data, run)
    assert page.stat().st_size <= full // 2
    pictures = [Image.open(io.BytesIO(raw)) for raw in Page(page).pictures()]
    assert len(pictures) == 2 * (1 + 9)
    assert max(max(picture.size) for picture in pictures) < 400


def test_missing_damaged_and_foreign_pictures_are_named(make: Make) -> None:
    data, run = make()
    (run.parent / "secret.png").write_bytes((run / "images/0.png").read_bytes())
    records = [dict(record) for record in data.pictures[0]["reconstructions"]]
    records[0]["path"] = "../secret.png"
    records[1]["path"] = "images/absent.png"
    records[2]["path"] = "images/text.png"
    records[3]["path"] = "images/cut.png"
    (run / "images/text.png").write_text("no picture")
    (run / "images/cut.png").write_bytes((run / "images/0.png").read_bytes()[:300])
    pictures = [data.pictures[0] | {"reconstructions": records}, data.pictures[1]]
    page = Page(write_page(replace(data, pictures=pictures), run))
    assert "../secret.png lies outside of the run directory" in page.text
    assert "images/absent.png is not there" in page.text
    assert "images/text.png is not a picture" in page.text
    assert "images/cut.png cannot be read" in page.text
    assert len(page.pictures()) == 2 * (1 + 9) - 4


def test_ten_images_at_thirteen_stages_fit_into_ten_megabytes(make: Make) -> None:
    # noise, which compresses worst, in as many pictures as VGG-16 and the five ways to the image give
    sides = [("transpose", "switches"), ("min-norm", "switches"), *(("gauss-newton", s) for s in SIDE_INFO)]
    data, run = make(names=tuple(f"{n}.png" for n in range(10)), size=(224, 224))
    names = [f"features.{i}" for i in range(13)]
    pictures = []
    for n, picture in enumerate(data.pictures):
        records = []
        for i, name in enumerate(names):
            for w, (method, side) in enumerate(sides):
                path = f"images/{n}-{name}-{w}.png"
                os.link(run / f"images/{n}-{i % 3}-{w % 3}.png", run / path)
                record = picture["reconstructions"][0] | {"stage": name, "method": method, "side_info": side}
                records.append(record | {"path": path})
        pictures.append(picture | {"reconstructions": records})
    stages = [data.stages[i % 3] | {"stage": name} for i, name in enumerate(names)]
    file = write_page(replace(data, stages=stages, pictures=pictures), run)
    assert file.stat().st_size < 10_000_000
    page = Page(file)
    assert len(page.data["images"]) == 10
    assert len(page.pictures()) == 10 * (1 + 13 * 5)
    shown = Image.open(io.BytesIO(page.pictures()[-1]))
    assert max(shown.size) >= 96
