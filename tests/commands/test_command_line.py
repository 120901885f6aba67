"""The command line as a contract: verbs, JSON, exit codes, one-line errors."""

import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from unconv.commands import format_table
from unconv.errors import UsageError
from unconv.evaluate import linear_fit
from unconv.options import OPTIONS, VERBS, Invert, Reproduce, command_line, in_options, parse_time


def keys(required="", optional="", **parts):
    """The keys of an object, or of each in a list: those that it has, those that it may have, and what parts hold."""
    return set(required.split()) | set(parts), set(optional.split()), parts


def check(found, shape):
    """A document has the keys of its shape and no others."""
    if isinstance(found, dict):
        required, optional, parts = shape
        assert required <= set(found) <= required | optional
        for name, inner in parts.items():
            check(found[name], inner)
    for one in found if isinstance(found, list) else ():
        check(one, shape)


SKIPPED, LEFT_OUT = keys("file reason"), keys("module reason")
COHERENCE = keys("signed absolute shifted")
TASK = "recover code method side_info"
MEANS = "relative_error psnr ssim seconds passes"
DOCUMENTS = {
    "layers": keys(layers=keys("layer kind input_shape shape block"), skipped=LEFT_OUT),
    "coherence": keys(blocks=keys("layer", learned=COHERENCE, random=COHERENCE)),
    "sparsity": keys(blocks=keys("layer activation pooled"), skipped=SKIPPED),
    "rip": keys(
        blocks=keys("layer k", "delta_how typical", ratio=keys("p01 p50 p99"), delta=keys("lower upper")),
        skipped=SKIPPED,
    ),
    "invert": keys(
        f"layer {TASK} notes",
        images=keys(f"file {MEANS} status", "feature_error picture"),
        summary=keys(f"{MEANS} images", "feature_error"),
        skipped=SKIPPED,
    ),
    "unseen": keys(
        layers=keys(
            "layer sigma relative_sigma bits in_pixels dfil unbiased_bound bayesian_bound bayesian_bound_estimate "
            "prior_variance bits_per_pixel_estimate gap_db attained attained_margin psnr probes images assumptions "
            "notes seconds",
            trace=keys("value low high"),
        )
    ),
    "report": keys(
        "run model",
        "command notes stopped audit leakage control",
        layers=keys(
            "layer shape linear",
            "kind",
            inversion=keys(
                f"{TASK} {MEANS} images converged no_gain", "failed note noise same_class lpips expected_error"
            ),
            block=keys("name kind input_shape code_shape", "sparsity coherence rip certificate"),
        ),
        skipped_images=SKIPPED,
        skipped_modules=LEFT_OUT,
    ),
}


@pytest.fixture
def document(call):
    def run(verb, *words):
        found = call(verb, *words, "--json").document
        check(found, DOCUMENTS[verb])
        return found

    return run


def test_layers(document):
    found = document("layers", "cases:vgg", "--size", 16)["layers"]
    shapes = {layer["layer"]: layer["shape"] for layer in found}
    assert shapes["2"] == [12, 8, 8]
    assert shapes["8"] == [16, 4, 4]
    assert any(layer["block"] for layer in found)
    assert not all(layer["block"] for layer in found)


def test_unseen(document, photographs, smooth_pictures, tmp_path):
    smooth_pictures(tmp_path, 8, (20, 20))
    references = ("--reference-images", tmp_path, "--size", 16)
    words = ("unseen", "cases:vgg", "--images", photographs, "--layer", "2", "--relative-sigma", 0.1)
    (found,) = document(*words, "--passes", 4, "--probes", 4, "--limit", 2, *references)["layers"]
    assert 0 < found["bayesian_bound"] < found["attained"]["linear"]


def test_metamers(call, photographs, tmp_path):
    words = ("unseen", "cases:vgg", "--images", photographs, "--layer", "8", "--size", 16, "--metamers", 40)
    (found,) = call(*words, "--out", tmp_path / "found", "--json").document["metamers"]
    assert 0 < found["passes"] <= 40
    assert len(list((tmp_path / "found").glob("8-*.png"))) == 2


def test_uniqueness(call, photographs):
    words = ("unseen", "cases:vgg", "--images", photographs, "--layer", "8", "--size", 16, "--unique")
    (found,) = call(*words, "--json").document["uniqueness"]
    assert 0 < found["radius"][0] <= found["radius"][1] < 1
    assert found["undetermined"] == 768 - 256
    assert "no gate and no switch changes within" in call(*words).out


def test_audit(call, photographs, smooth_pictures, tmp_path):
    (tmp_path / "references").mkdir()
    smooth_pictures(tmp_path / "references", 8, (20, 20))
    words = ("audit", "cases:vgg", "--images", photographs, "--layer", "2", "--size", 16, "--limit", 2, "--noise", 0.5)
    words += ("--judge", "cases:without_convolutions", "--passes", 2, "--reference-images", tmp_path / "references")
    found = call(*words, "--out", tmp_path / "run", "--json").document["audit"]
    assert [(entry["attacker"], entry["noise"]) for entry in found["table"]] == [
        *(("linear decoder", noise) for noise in (0.0, 0.5)),
        *(("refined", noise) for noise in (0.0, 0.5)),
        ("refined, with switches", 0.0),
    ]
    assert found["cannot_conclude"]


def test_coherence(document):
    found = document("coherence", "cases:vgg", "--size", 16)["blocks"]
    for bank in (block[name] for block in found for name in ("learned", "random")):
        assert -1 <= bank["signed"] <= bank["absolute"] <= bank["shifted"] <= 1


def test_sparsity(document, photographs):
    found = document("sparsity", "cases:vgg", "--images", photographs)
    assert [block["layer"] for block in found["blocks"]] == ["0", "3", "6"]
    assert all(0 < block["activation"] <= block["pooled"] <= 100 for block in found["blocks"])
    assert [image["file"] for image in found["skipped"]] == ["broken.jpg"]


def test_rip(document, call, photographs):
    found = document("rip", "cases:vgg", "--images", photographs, "--samples", 50)["blocks"]
    for block in found:
        assert 0.5 < block["ratio"]["p01"] <= block["ratio"]["p50"] <= block["ratio"]["p99"] < 1.6
        assert 0 < block["delta"]["lower"] <= block["delta"]["upper"]
        drawn, seen = block["typical"]
        assert (drawn["samples"], seen["samples"]) == (50, 3)
        assert drawn["text"].endswith("at 95 % confidence")
        assert seen["low"] <= seen["high"]
    (one,) = document("rip", "cases:vgg", "--size", 16, "--k", 1, "--blocks", "3", "--samples", 20)["blocks"]
    assert one["layer"] == "3"
    assert one["ratio"]["p50"] == pytest.approx(1, abs=1e-5)
    shown = call("rip", "cases:vgg", "--size", 16, "--k", 1, "--blocks", "3", "--samples", 20).out
    assert "keep their norm" not in shown
    assert " % within " in shown.splitlines()[1]
    sampled = document("rip", "cases:vgg", "--size", 16, "--k", 4, "--samples", 20, "--effort", 0)["blocks"]
    assert all(block["delta"]["upper"] is None for block in sampled)
    ended = call("rip", "cases:vgg", "--size", 16, "--k", 10**6)
    assert ended.status == 1
    assert "give at most that" in ended.message


def test_invert_an_image_and_a_blocks_input(document, photographs):
    found = document("invert", "cases:vgg", "--layer", "2", "--images", photographs, "--passes", 30)
    assert [image["file"] for image in found["images"]] == ["00.png", "01.png", "02.png"]
    assert [image["file"] for image in found["skipped"]] == ["broken.jpg"]
    assert all(image["psnr"] is not None and image["passes"] <= 30 for image in found["images"])
    errors = [image["relative_error"] for image in found["images"]]
    assert found["summary"]["relative_error"] == pytest.approx(sum(errors) / 3)

    words = ("--layer", "3", "--images", photographs, "--recover", "input", "--side-info", "switches")
    convex = document("invert", "cases:vgg", *words)
    assert (convex["method"], convex["recover"]) == ("convex", "input")
    assert all(image["psnr"] is None for image in convex["images"])
    transpose = document("invert", "cases:vgg", *words, "--method", "transpose")
    assert convex["summary"]["relative_error"] < transpose["summary"]["relative_error"]


def test_several_layers_and_pictures(call, photographs, tmp_path):
    words = ("invert", "cases:vgg", "--layers", "2", "8", "--images", photographs, "--passes", 8, "--out", tmp_path)
    found = call(*words, "--json").document
    assert [layer["layer"] for layer in found["layers"]] == ["2", "8"]
    for layer in ("2", "8"):
        assert len(list((tmp_path / layer / "images").glob("*.png"))) >= 3
        assert (tmp_path / layer / "results.parquet").exists()


def test_no_image_under_test_is_a_reference_image_however_many_there_are(call, smooth_pictures, tmp_path):
    smooth_pictures(tmp_path, 70, (20, 20))
    words = ("invert", "cases:vgg", "--images", tmp_path, "--layer", "2", "--size", 16, "--method", "linear")
    ended = call(*words, "--reference-images", tmp_path)
    assert ended.status == 1
    assert "holds no usable image of shape (3, 16, 16) that is not under test" in ended.err[-1]


def test_several_layers_are_fitted_in_one_pass_over_the_reference_images(call, photographs, tmp_path, monkeypatch):
    fitted, fit = [], linear_fit.fit_linear_decoders
    monkeypatch.setattr(linear_fit, "fit_linear_decoders", lambda *args: fitted.append(args[2]) or fit(*args))
    words = ("invert", "cases:vgg", "--images", photographs, "--seed", 7, "--method", "linear")
    both = call(*words, "--layers", "2", "8", "--json").document["layers"]
    assert fitted == [["2", "8"]]
    linear_fit._fitted.clear()
    alone = [call(*words, "--layer", layer, "--json").document for layer in ("2", "8")]
    assert fitted[1:] == [["2"], ["8"]]
    for one, other in zip(both, alone, strict=True):
        assert one["summary"]["relative_error"] == pytest.approx(other["summary"]["relative_error"], rel=1e-5)
    # a run directory has them: nothing is fitted again
    for _ in range(2):
        linear_fit._fitted.clear()
        assert call(*words, "--layers", "2", "8", "--out", tmp_path).status == 0
    assert fitted[3:] == [["2", "8"]]
    # what is wrong is said before anything is fitted
    assert "no layer 'nowhere'" in call(*words, "--layers", "2", "nowhere").message
    assert "passes have no effect on linear" in call(*words, "--layers", "2", "8", "--passes", 3).message
    assert len(fitted) == 4


def test_features_in_place_of_images(call, tmp_path):
    features = torch.rand(2, 12, 8, 8)
    save_file({"2": features, "other": torch.zeros(1)}, tmp_path / "f.safetensors")
    words = ("invert", "cases:vgg", "--size", 16, "--layer", "2", "--passes", 8)
    found = call(*words, "--features", tmp_path / "f.safetensors", "--json").document
    assert [image["psnr"] for image in found["images"]] == [None, None]
    assert "feature_error is ||f(x^) - y|| / ||y||" in call(*words, "--features", tmp_path / "f.safetensors").out
    assert "cannot be read" in call(*words, "--features", "nowhere").message
    save_file({"a": features, "b": features + 1}, tmp_path / "f.safetensors")
    assert "give one tensor, or one named '2'" in call(*words, "--features", tmp_path / "f.safetensors").message


def test_a_table_says_what_its_numbers_are(call, photographs, tmp_path):
    words = ("invert", "cases:vgg", "--layer", "8", "--images", photographs, "--limit", 1, "--passes", 8)
    ended = call(*words, "--out", tmp_path / "out")
    assert ended.status == 0, ended.err
    assert "psnr (dB)" in ended.out
    assert f"in {tmp_path / 'out'}: pictures" in ended.out
    assert "--out FOLDER keeps the pictures" in call(*words).out
    ended = call("rip", "cases:vgg", "--size", "16", "--k", "2", "--samples", "20", "--blocks", "6")
    assert "delta_k is the smallest d" in ended.out
    assert "conv block" in call("layers", "cases:vgg", "--size", "16").out.splitlines()[0]


def test_report_end_to_end_and_again(document, call, photographs, tmp_path):
    words = ("cases:vgg", "--images", photographs, "--out", tmp_path / "run", "--samples", 10, "--batch", 2)
    found = document("report", *words, "--passes", 20)
    run = Path(found["run"])
    names = {"config.json", "environment.json", "results.parquet", "report.html", "images", "figures"}
    assert {path.name for path in run.iterdir()} >= names
    page = (run / "report.html").read_text()
    assert "broken.jpg" in page
    assert not re.search(r"(src|href)=[\"']https?:", page)
    rows = pq.read_table(run / "results.parquet").to_pylist()
    assert len(rows) == 3 * sum(len(layer["inversion"]) for layer in found["layers"])
    for row in rows:
        assert row["picture"] is None or (run / row["picture"]).exists()
        assert row["passes"] is None or row["passes"] <= 20

    text = call("report", *words, "--passes", 20).out
    assert text.startswith("From features alone, the image is recognisable")
    for layer in found["layers"]:
        starts = [layer["layer"], "x".join(map(str, layer["shape"]))]
        (line,) = [line.split() for line in text.splitlines() if line.split()[:2] == starts]
        errors = {i["side_info"]: i["relative_error"] for i in layer["inversion"] if i["method"] == "gauss-newton"}
        shown = [f"{errors[side]:.4g}" if side in errors else "-" for side in ("none", "switches", "gates")]
        assert line[3:6] == shown


VGG = ("cases:vgg", "--size", 16)


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["report", "no-such-model"], 2, "no-such-model"),
        (["invert", *VGG, "--layer", "99"], 2, "99"),
        (["invert", *VGG], 2, "^--layer is missing; see unconv layers cases:vgg$"),
        (["invert", *VGG, "--layer", "2", "--method", "magic"], 2, "magic.*gauss-newton.*see unconv invert --help$"),
        (["invert", *VGG, "--layer", "2", "--method", "linear", "--side-info", "gates"], 2, "--side-info"),
        (["invert", *VGG, "--layer", "2", "--budget", "soon"], 2, "^--budget is 'soon'; expected a time"),
        (["sparsity", *VGG, "--blocks", "9"], 2, "9.*0, 3, 6"),
        (["coherence", "cases:without_convolutions", "--size", "16"], 1, "no conv"),
        (["layers", "cases:unpadded", "--size", "4"], 1, "4"),
        (["layers", "cases:vgg", "--device", "abacus"], 2, "abacus"),
        (["report", "cases:vgg", "--batch", "0"], 2, "^--batch is 0"),
        (["report", "cases:vgg", "--seed", 10**20], 2, "^--seed is 10+; expected a whole number"),
        (["report", "cases:vgg", "--region", 0], 2, "^--region is 0"),
        (["report", "cases:vgg", "--limit=-3"], 2, "^--limit is -3; it is a whole number"),
        (["layers", "cases:vgg", "--mean", "1,2", "--std", 1], 2, "^--mean is '1,2'; expected one or three"),
        (["rip", *VGG, "--k=-1"], 2, "^--k is -1"),
        (["rip", *VGG, "--effort", "nan"], 2, "^--effort is nan"),
        (["coherence", "cases:nothing"], 2, "^cases has no nothing"),
        (["audit", *VGG, "--passes", "2", "--budget", "1m"], 2, "both say how much work is done; give one of them$"),
        (["audit", *VGG, "--passes", "2", "--judge", "squeezenet1_1"], 2, "squeezenet1_1 are random; give a trained"),
        (["unseen", *VGG, "--layer", "2", "--relative-sigma", "-1"], 2, "^--relative-sigma is -1.0; it is a standard"),
        (["report", "cases:vgg", "--ray", "a", "b"], 2, "^--ray takes at most one address"),
        (["frobnicate", "cases:vgg"], 2, "^there is no verb frobnicate; use one of report, "),
        (["layers"], 2, "^Missing from unconv layers: .*module:callable.*; see unconv layers --help$"),
        (["layers", "cases:vgg", "--size", "big"], 2, "--size.*big.*; see unconv layers --help$"),
        (["report", "cases:vgg", "--effrt", "3"], 2, "--effrt.*; see unconv report --help$"),
        (["doctor", "--size", "3"], 2, "--size.*; see unconv doctor --help$"),
        (["train-decoder", *VGG], 2, "^--layer is missing"),
        (["train-decoder", *VGG, "--layer", "0"], 2, "^--images is missing"),
        (["reproduce", "table9"], 2, "table9"),
        (["reproduce", "thm31", "--sizes", "1", "2"], 2, "^Missing value .*--sizes"),
    ],
)
def test_errors_are_one_line(call, words, status, message):
    ended = call(*words)
    assert ended.status == status, ended.err
    assert re.search(message, ended.message), ended.err


def test_debug_shows_the_traceback(call):
    ended = call("layers", "no-such-model", "--debug")
    assert ended.status == 2
    assert any("Traceback" in line for line in ended.err)


def test_help_names_every_verb_and_imports_no_torch(call):
    ended = call("--help")
    assert ended.status == 0
    assert all(verb in ended.out for verb in VERBS)
    assert "unconv report [-h] [OPTIONS] MODEL" in call("report", "--help").out
    code = "import sys, unconv.cli; unconv.cli.main(['report', '--help']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_the_version(call):
    assert re.fullmatch(r"unconv \d+\.\d+\.\d+\S*\n", call("--version").out)


def test_unconv_alone_says_what_to_do_next(call):
    ended = call()
    assert (ended.status, ended.err) == (0, [])
    assert len(ended.out.splitlines()) < 20
    for word in re.findall(r"^  unconv (\S+)", ended.out, re.MULTILINE):
        assert word in VERBS or word.startswith("--")


@pytest.mark.parametrize(("text", "seconds"), [("10m", 600), ("90s", 90), ("1h", 3600), ("1.5", 1.5)])
def test_times(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1", "3d", "nan", "inf", "1m30s", "9" * 400])
def test_what_is_no_time(text):
    with pytest.raises(UsageError, match="expected a time"):
        parse_time(text)


def test_errors_of_the_library_are_shown_with_options():
    assert in_options("side_info is 'x'; use reference_images") == "--side-info is 'x'; use --reference-images"
    assert in_options("batch is 0; give passes=3") == "--batch is 0; give --passes 3"
    assert in_options("choose another directory with out") == "choose another directory with --out"
    assert in_options("no image of this size, with batch norm") == "no image of this size, with batch norm"
    assert in_options("give --side-info none") == "give --side-info none"
    assert OPTIONS["held_out"] == "--held-out"


def test_a_command_line_runs_options_again():
    options = Invert(model="m", layer=("a", "b"), side_info="gates", out=Path("x"), json=True)
    assert command_line("invert", options) == "unconv invert m --layer a b --side-info gates"
    assert command_line("reproduce", Reproduce(name="fig2", model="m")) == "unconv reproduce fig2 --model m"


def test_titles_of_several_lines_keep_columns_narrow():
    text = format_table(("layer", "image\ngauss-newton\nnone", "k"), [("a", 1.5, 2), ("b", None, 10)])
    assert text.splitlines() == [
        "layer         image   k",
        "       gauss-newton",
        "               none",
        "a               1.5   2",
        "b                 -  10",
    ]
