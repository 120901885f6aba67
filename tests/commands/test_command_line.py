"""The command line as a contract: verbs, JSON, exit codes, one-line errors."""

import json
import math
import re
import shutil
from pathlib import Path

import jsonschema
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from unconv.cli import VERBS, main
from unconv.commands.loading import rows_of_text

NUMBER = {"type": "number"}
MAYBE = {"type": ["number", "null"]}
TEXT = {"type": "string"}
SHAPE = {"type": "array", "items": {"type": "integer", "minimum": 1}}


def objects(properties, extra=()):
    """A list of objects that all have these properties (and may have those)."""
    return {"type": "array", "items": closed(properties, extra)}


def closed(properties, extra=()):
    allowed = dict(properties) | {key: {} for key in extra}
    return {"type": "object", "properties": allowed, "required": list(properties), "additionalProperties": False}


STAGE = {"stage": TEXT, "kind": TEXT, "input_shape": SHAPE, "code_shape": SHAPE}
COHERENCE = closed({"signed": MAYBE, "absolute": MAYBE, "shifted": MAYBE})
INVERSION = {
    "from": {"enum": ["layer", "image"]},
    "code": {"enum": ["network", "paper"]},
    "method": TEXT,
    "side_info": {"enum": ["none", "switches", "gates"]},
    "relative_error": MAYBE,
    "psnr": MAYBE,
    "ssim": MAYBE,
    "seconds": MAYBE,
    "images": {"type": "integer"},
    "failed": {"type": "integer"},
    "note": {"type": ["string", "null"]},
}
RATIO = closed({"p01": NUMBER, "p50": NUMBER, "p99": NUMBER})
SCHEMAS = {
    "stages": closed({
        "stages": objects(STAGE, ["source"]),
        "skipped": objects({"module": TEXT, "reason": TEXT}),
    }),
    "coherence": closed({"stages": objects({"stage": TEXT, "learned": COHERENCE, "random": COHERENCE})}),
    "sparsity": closed({"stages": objects({"stage": TEXT, "activation": NUMBER, "pooled": NUMBER})}),
    "rip": closed({
        "stages": objects(
            {
                "stage": TEXT,
                "k": {"type": "integer"},
                "ratio": RATIO,
                "delta": closed({"lower": NUMBER, "upper": MAYBE}),
            },
            ["delta_how"],
        )
    }),
    "invert": closed(
        {
            "stage": TEXT,
            "method": TEXT,
            "side_info": TEXT,
            "images": objects(
                {"file": TEXT, "relative_error": NUMBER, "psnr": MAYBE, "ssim": MAYBE, "seconds": NUMBER},
                ["status", "picture"],
            ),
            "summary": closed({"relative_error": NUMBER}, ["psnr", "ssim", "seconds", "images"]),
        },
        ["from", "code", "skipped"],
    ),
    "invert over all": closed(
        {
            "stages": objects(
                STAGE
                | {name: {"type": "integer"} for name in ("equations", "inequalities", "unknowns")}
                | {"inversion": objects(INVERSION)}
            ),
        },
        ["skipped_modules", "skipped"],
    ),
    "report": closed(
        {
            "run": TEXT,
            "stages": objects(
                STAGE
                | {
                    "activation": NUMBER,
                    "pooled": NUMBER,
                    "coherence": closed({"learned": COHERENCE, "random": COHERENCE}),
                    "rip": objects({
                        "filters": TEXT,
                        "boundary": TEXT,
                        "k": {"type": "integer"},
                        "p01": NUMBER,
                        "p50": NUMBER,
                        "p99": NUMBER,
                    }),
                    "inversion": objects(INVERSION),
                },
                ["certificate"],
            ),
        },
        ["skipped_modules", "skipped_images"],
    ),
}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Three small smooth pictures and one broken file."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for i in range(3):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
        coarse.resize((16, 16), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the command line beside the tiny networks; exit status, stdout, stderr."""

    def run(*words):
        monkeypatch.chdir(Path(__file__).parents[1])
        capsys.readouterr()
        status = main([str(word) for word in words])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


@pytest.fixture
def document(call):
    def run(verb, *words):
        status, out, err = call(verb, *words, "--json")
        assert status == 0, err
        found = json.loads(out)
        jsonschema.validate(found, SCHEMAS["invert over all" if verb == "invert" and "stages" in found else verb])
        return found

    return run


def test_stages(document):
    found = document("stages", "tiny_networks:vgg", "--size", 16)
    assert [s["stage"] for s in found["stages"]] == ["0", "3", "6"]
    assert [s["kind"] for s in found["stages"]] == ["conv+relu+maxpool", "conv+bn+relu", "conv+relu+avgpool"]
    assert [s["source"] for s in found["stages"]] == ["image", "0", "3"]
    assert found["stages"][0] | {"source": 0} == {
        "stage": "0",
        "kind": "conv+relu+maxpool",
        "input_shape": [3, 16, 16],
        "code_shape": [12, 8, 8],
        "source": 0,
    }


def test_coherence(document):
    found = document("coherence", "tiny_networks:vgg", "--size", 16)["stages"]
    for bank in (s[name] for s in found for name in ("learned", "random")):
        assert -1 <= bank["signed"] <= bank["absolute"] <= bank["shifted"] <= 1


def test_sparsity(document, photographs):
    found = document("sparsity", "tiny_networks:vgg", "--images", photographs)["stages"]
    assert all(0 < s["activation"] <= s["pooled"] <= 100 for s in found)


def test_rip(document, photographs):
    found = document("rip", "tiny_networks:vgg", "--images", photographs, "--samples", 50)["stages"]
    for stage in found:
        assert 0.5 < stage["ratio"]["p01"] <= stage["ratio"]["p50"] <= stage["ratio"]["p99"] < 1.6
        assert 0 < stage["delta"]["lower"] <= stage["delta"]["upper"]
    one = document("rip", "tiny_networks:vgg", "--size", 16, "--k", 1, "--stages", "3", "--samples", 20)["stages"]
    assert [s["stage"] for s in one] == ["3"]
    assert one[0]["ratio"]["p50"] == pytest.approx(1, abs=1e-5)
    sampled = document("rip", "tiny_networks:vgg", "--size", 16, "--k", 4, "--samples", 20, "--effort", 0)["stages"]
    assert all(s["delta"]["upper"] is None for s in sampled)


def test_invert_a_layer_and_the_image(document, photographs):
    found = document("invert", "tiny_networks:vgg", "--stage", "0", "--images", photographs)
    assert [i["file"] for i in found["images"]] == ["0.png", "1.png", "2.png"]
    assert [s["file"] for s in found["skipped"]] == ["broken.jpg"]
    assert all(i["psnr"] is not None for i in found["images"])
    errors = [i["relative_error"] for i in found["images"]]
    assert found["summary"]["relative_error"] == pytest.approx(sum(errors) / 3)

    layer = document("invert", "tiny_networks:vgg", "--stage", "3", "--images", photographs)
    assert all(i["psnr"] is None for i in layer["images"])
    transpose = document(
        "invert", "tiny_networks:vgg", "--stage", "3", "--images", photographs, "--method", "transpose"
    )
    assert layer["summary"]["relative_error"] < transpose["summary"]["relative_error"]

    image = document("invert", "tiny_networks:vgg", "--stage", "3", "--images", photographs, "--from", "image")
    assert all(i["psnr"] is not None for i in image["images"])


def test_side_information_helps(document, photographs):
    def error(side_info):
        words = ("--stage", "0", "--images", photographs, "--side-info", side_info)
        return document("invert", "tiny_networks:vgg", *words)["summary"]["relative_error"]

    assert error("switches") < error("none")


def test_the_gradient_baseline_and_priors_are_within_reach(document, photographs):
    def error(*words):
        found = document("invert", "tiny_networks:vgg", "--stage", "3", "--images", photographs, *words)
        return found["summary"]["relative_error"]

    adam = error("--method", "gradient", "--effort", 0.5)
    assert adam < 1
    assert error("--method", "gradient", "--effort", 0.5, "--optimizer", "lbfgs") != adam
    assert error("--method", "gradient", "--effort", 0.5, "--total-variation", 10, "--jitter", 1) != adam
    plain = error("--from", "image")
    assert plain < 1
    assert error("--from", "image", "--prior", "tv", "--prior-weight", 10) != plain
    assert error("--prior", "none") != error("--prior", "tv", "--prior-weight", 1)


def test_invert_over_all_stages(document, photographs, tmp_path):
    words = ("tiny_networks:vgg", "--images", photographs, "--effort", 0.2, "--out", tmp_path / "pictures")
    stages = document("invert", *words)["stages"]
    assert [s["stage"] for s in stages] == ["0", "3", "6"]
    for stage in stages:
        assert stage["unknowns"] == math.prod(stage["input_shape"])
        assert 0 < stage["equations"] <= math.prod(stage["code_shape"])
        kinds = [(i["from"], i["method"], i["side_info"]) for i in stage["inversion"]]
        assert ("layer", "iht", "switches") in kinds
        assert [kind for kind in kinds if kind[1] == "gauss-newton"] == [
            ("image", "gauss-newton", known) for known in ("none", "switches", "gates")
        ]
    first = {(i["from"], i["method"]): i["relative_error"] for i in stages[0]["inversion"]}
    assert first["layer", "convex"] < first["layer", "iht"]
    assert len(list((tmp_path / "pictures").glob("0000-0-*.png"))) == len(stages[0]["inversion"])

    chosen = document("invert", *words[:-2], "--stages", "3", "--method", "gradient", "--side-info", "gates")
    (only,) = chosen["stages"]
    assert [(i["from"], i["method"], i["side_info"]) for i in only["inversion"]] == [("image", "gradient", "gates")]


def test_invert_the_papers_code(document, photographs):
    words = ("--stage", "3", "--images", photographs, "--code", "paper", "--region", 2, "--method", "iht")
    found = document("invert", "tiny_networks:vgg", *words)
    assert 0.3 < found["summary"]["relative_error"] < 1.2


def test_titles_of_several_lines_keep_columns_narrow():
    text = rows_of_text(("stage", "image\ngauss-newton\nnone", "k"), [("a", 1.5, 2)])
    assert text.splitlines() == [
        "stage         image  k",
        "       gauss-newton",
        "               none",
        "a               1.5  2",
    ]


def test_a_table_says_what_its_numbers_are(call, photographs, tmp_path):
    words = ("invert", "tiny_networks:vgg", "--stage", "3", "--from", "image", "--images", photographs, "--size", "16")
    status, out, err = call(*words, "--effort", "0.05", "--limit", "1", "--out", tmp_path / "out")
    assert status == 0, err
    assert "psnr (dB)" in out
    assert ("max_steps: the solver was stopped" in out) == ("max_steps" in out.splitlines()[1])
    assert f"in {tmp_path / 'out'}: the recovered images" in out
    status, out, err = call("rip", "tiny_networks:vgg", "--size", "16", "--k", "2", "--samples", "20", "--stages", "6")
    assert status == 0, err
    assert "delta_k is the smallest d" in out


def test_invert_writes_pictures(document, photographs, tmp_path):
    document("invert", "tiny_networks:vgg", "--stage", "0", "--images", photographs, "--out", tmp_path)
    assert len(list(tmp_path.glob("*.png"))) == 3


def test_report_end_to_end_and_again(document, photographs, tmp_path):
    words = ("tiny_networks:vgg", "--images", photographs, "--out", tmp_path / "run", "--samples", 10, "--batch", 2)
    found = document("report", *words)
    run = Path(found["run"])
    assert {p.name for p in run.iterdir()} >= {
        "config.json",
        "environment.json",
        "results.parquet",
        "report.html",
        "images",
        "figures",
    }
    page = (run / "report.html").read_text()
    assert "broken.jpg" in page
    assert not re.search(r"(src|href)=[\"']https?:", page)
    rows = pq.read_table(run / "results.parquet").to_pylist()
    assert len(rows) == 3 * 3 * len(found["stages"][0]["inversion"])
    for row in rows:
        assert row["picture"] is None or (run / row["picture"]).exists()
    # the averaging stage says why it states no equation instead of a number
    noted = [i for i in found["stages"][2]["inversion"] if i["relative_error"] is None]
    assert noted
    assert all("average" in i["note"] for i in noted)

    before = (run / "results.parquet").read_bytes()
    assert document("report", *words)["stages"] == found["stages"]
    assert (run / "results.parquet").read_bytes() == before

    # an interrupted run: some parts are gone, the same command brings the same bytes back
    shutil.rmtree(run / "figures")
    (run / "results.parquet").unlink()
    next((run / "parts").glob("inversion-*")).unlink()
    document("report", *words)
    assert (run / "results.parquet").read_bytes() == before


def test_report_on_a_residual_network_says_where_no_chain_leads(document, photographs, tmp_path):
    found = document(
        "report", "tiny_networks:residual", "--images", photographs, "--out", tmp_path / "run", "--samples", 5
    )
    head = found["stages"][-1]["inversion"]
    assert any(i["from"] == "image" and "no chain" in (i["note"] or "") for i in head)
    assert all(i["relative_error"] is not None for i in head if i["from"] == "layer")


def test_images_that_overflow_are_skipped_by_name(call, photographs, tmp_path):
    shutil.copytree(photographs, tmp_path / "in")
    Image.new("RGB", (16, 16)).save(tmp_path / "in" / "black.png")
    status, out, err = call("sparsity", "tiny_networks:not_finite", "--images", tmp_path / "in", "--json")
    assert status == 0, err
    assert "skipped 0.png" in err
    assert "NaN or infinite" in err
    assert json.loads(out)["stages"]


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["report", "no-such-model"], 2, "no-such-model"),
        (["invert", "tiny_networks:vgg", "--size", "16", "--stage", "9"], 2, r"'?9'?.*0, 3, 6"),
        (["invert", "tiny_networks:vgg", "--size", "16", "--method", "magic"], 2, "no method 'magic'"),
        (["invert", "tiny_networks:vgg", "--code", "paper", "--from", "image"], 2, "leave out --from"),
        (["invert", "tiny_networks:vgg", "--stage", "0", "--effort", "0"], 2, "--effort is 0"),
        (["invert", "tiny_networks:vgg", "--stage", "0", "--prior", "magic"], 2, "magic.*smooth"),
        (["invert", "tiny_networks:vgg", "--stage", "0", "--method", "iht", "--prior", "tv"], 2, "takes no prior 'tv'"),
        (["invert", "tiny_networks:vgg", "--stage", "0", "--from", "image", "--prior", "l1"], 2, "none, .*tv"),
        (["invert", "tiny_networks:vgg", "--stage", "0", "--prior-weight", "1"], 2, "--prior-weight is that of"),
        (["invert", "tiny_networks:vgg", "--stage", "0", "--decoders", "a"], 2, "files for --method decoder"),
        (
            ["invert", "tiny_networks:vgg", "--stage", "0", "--method", "decoder", "--side-info", "none"],
            2,
            "use --side-info switches",
        ),
        (
            ["invert", "tiny_networks:vgg", "--size", "16", "--stage", "0", "--method", "decoder"],
            1,
            "stage 0 has no decoder at hand; unconv train-decoder",
        ),
        (["invert", "tiny_networks:vgg", "--stage", "0", "--jitter", "2"], 2, "use them with --method gradient"),
        (
            [
                "invert",
                "tiny_networks:vgg",
                "--stage",
                "0",
                "--method",
                "gradient",
                "--jitter",
                "1",
                "--optimizer",
                "lbfgs",
            ],
            2,
            "0 with L-BFGS",
        ),
        (["invert", "tiny_networks:vgg", "--size", "16", "--stage", "0", "--method", "magic"], 2, "no method 'magic'"),
        (["sparsity", "tiny_networks:vgg", "--images", "nowhere"], 2, "nowhere"),
        (["coherence", "tiny_networks:without_convolutions", "--size", "16"], 1, "no convolution"),
        (["coherence", "tiny_networks:vgg", "--weights", "nowhere.safetensors"], 2, "nowhere.safetensors"),
        (["stages", "tiny_networks:unpadded", "--size", "4"], 1, "4"),
        (["stages", "tiny_networks:vgg", "--device", "abacus"], 2, "abacus"),
        (["rip", "tiny_networks:vgg", "--size", "16", "--k", "100000"], 1, "regions"),
        (["report", "tiny_networks:vgg", "--batch", "0"], 2, "--batch is 0"),
        (["report", "tiny_networks:vgg", "--limit", "0"], 2, "--limit is 0"),
        (["report", "tiny_networks:vgg", "--samples", "0"], 2, "--samples"),
        (["inverse", "tiny_networks:vgg"], 2, "no verb inverse; try invert; see unconv --help$"),
        (["frobnicate", "tiny_networks:vgg"], 2, "no verb frobnicate; use one of report, "),
        (
            ["invert", "tiny_networks:vgg", "--from", "moon"],
            2,
            "--from is 'moon'; use image or layer; see unconv invert",
        ),
        (["stages"], 2, "Missing from unconv stages: MODEL, a bundled name .* or module:callable; see unconv stages"),
        (["stages", "tiny_networks:vgg", "--size", "big"], 2, "^unconv: --size is 'big'; it takes a whole number; see"),
        (
            ["report", "tiny_networks:vgg", "--effrt", "3"],
            2,
            "^unconv: unconv report has no option --effrt; try --effort; see unconv report --help$",
        ),
        (["report", "tiny_networks:vgg", "--effort", "x"], 2, "^unconv: --effort is 'x'; it takes a number; see"),
        (["doctor", "--size", "3"], 2, "^unconv: unconv doctor has no option --size; see"),
        (
            ["report", "tiny_networks:vgg", "--image", "x"],
            2,
            "^unconv: unconv report has no option --image; try --images; see unconv report --help$",
        ),
        (
            ["reprot", "tiny_networks:vgg", "--size", "16"],
            2,
            "^unconv: there is no verb reprot; try report; see unconv -",
        ),
        (
            ["report", "tiny_networks:vgg", "--mean", "0.4", "0.5", "0.6", "--std", "1"],
            2,
            "^unconv: --mean takes one number, or three with commas and no spaces, such as",
        ),
        (
            ["report", "tiny_networks:vgg", "extra"],
            2,
            "^unconv: unconv report cannot use extra; see unconv report --help$",
        ),
        (["stages", "tiny_networks:vgg", "--stages", "0,3"], 2, "'0,3' is no stage; put spaces between stages: 0 3$"),
        (
            ["rip", "tiny_networks:vgg", "--size", "16", "--stages", "0,6"],
            2,
            "'0,6' is no stage; put spaces between stages: 0 6$",
        ),
        (["--tyro-print-completion", "nosh"], 2, "name of your shell: bash, zsh, fish"),
    ],
)
def test_errors_are_one_line(call, words, status, message):
    found, out, err = call(*words)
    lines = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert found == status, err
    assert out == ""
    assert len(lines) == 1, err
    assert lines[0].startswith("unconv: ")
    assert re.search(message, lines[0]), err


def test_an_empty_folder_and_an_unreadable_one(call, tmp_path):
    status, _, err = call("sparsity", "tiny_networks:vgg", "--images", tmp_path)
    assert (status, err.count("unconv: ")) == (1, 1)
    (tmp_path / "x.png").write_bytes(b"")
    status, _, err = call("sparsity", "tiny_networks:vgg", "--images", tmp_path)
    assert status == 1
    assert "x.png" in err


def test_debug_shows_the_traceback(call):
    status, _, err = call("stages", "no-such-model", "--debug")
    assert status == 2
    assert "Traceback" in err


def test_help_names_every_verb_and_needs_no_torch(call):
    status, out, _ = call("--help")
    assert status == 0
    for verb in VERBS:
        assert verb in out


def test_unconv_alone_says_what_to_do_next(call):
    status, out, err = call()
    assert (status, err) == (0, "")
    assert len(out.splitlines()) < 20
    for line in re.findall(r"^  unconv (\S+)", out, re.MULTILINE):
        assert line in VERBS or line.startswith("--")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_verb(call, shell):
    status, out, _ = call("--tyro-print-completion", shell)
    assert status == 0
    assert all(verb in out for verb in VERBS)
    assert "--dry-run" in out
