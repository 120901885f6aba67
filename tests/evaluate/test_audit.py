"""The audit: attackers and noise as tasks of the one loop, and a document with intervals and conclusions."""

import re

import pyarrow.parquet as pq
import pytest
import torch
from scipy import stats
from skimage.metrics import peak_signal_noise_ratio

import cases
import unconv
from unconv.errors import UsageError
from unconv.evaluate.audit import audit_document, audit_tasks, interval, mean_colours
from unconv.evaluate.network import open_network
from unconv.evaluate.reconstruction import Task, add_noise, with_noise
from unconv.images import InMemoryImages
from unconv.inversion.linear import LinearDecoder
from unconv.preprocessing import Preprocess

LAYERS = ("a", "b")
KINDS = (("linear", "none"), ("gauss-newton", "none"), ("gauss-newton", "switches"), ("gauss-newton", "gates"))
TASKS = [Task(layer, method=method, side_info=side) for layer in LAYERS for method, side in KINDS]  # pyright: ignore


def rows_of(tasks, images=3):
    """Rows whose SSIM tells task and image."""
    rows = []
    for n in range(images):
        for t, task in enumerate(tasks):
            ssim = 0.9 - 0.05 * t - task.noise + 0.01 * n
            about = {"image": n, "file": f"{n}.png", "passes": 8, "status": "converged" if n else "max_steps"}
            rows.append(about | task.fields() | {"relative_error": 1 - ssim, "psnr": 30 * ssim, "ssim": ssim})
    return rows


def test_attackers_are_those_without_gates_and_noise_meets_features_alone():
    tasks = audit_tasks([*TASKS, Task("a", method="decoder", side_info="switches")], (0.3, 0.0, 0.1), ["b"])
    assert [(t.method, t.side_info) for t in tasks if t.layer == "a" and not t.noise] == list(KINDS[:3])
    noisy = [(t.layer, t.method, t.noise) for t in tasks if t.noise]
    assert noisy == [(n, m, s) for s in (0.1, 0.3) for n in LAYERS for m in ("linear", "gauss-newton")]
    with pytest.raises(UsageError, match="noise is -1"):
        audit_tasks(TASKS, (-1,), [])


def test_the_interval_is_students():
    x = [0.2, 0.5, 0.4, 0.9]
    expected = stats.t.interval(0.95, 3, loc=sum(x) / 4, scale=stats.sem(x))
    assert interval(x) == pytest.approx(expected)
    assert interval([0.3]) is None


def test_the_document_has_means_the_most_exposed_image_and_what_was_stopped():
    tasks = audit_tasks(TASKS, (0.2,), [])
    flat = [{"image": n, "psnr": 12.0, "ssim": 0.8} for n in range(3)]
    document = audit_document(rows_of(tasks), tasks, flat)
    assert [e["layer"] for e in document["table"]] == ["a"] * 5 + ["b"] * 5
    first = document["table"][0]
    assert first["ssim"]["mean"] == pytest.approx(0.91)
    assert (first["ssim"]["worst"], first["ssim"]["worst_file"]) == (pytest.approx(0.92), "2.png")
    assert (first["images"], first["converged"], first["same_class"]) == (3, 2, None)
    assert first["status"] == "1 of 3 stopped before convergence, after 8 passes"
    can, cannot = (" ".join(document[key]) for key in ("can_conclude", "cannot_conclude"))
    assert "At a, linear decoder: mean SSIM 0.91 (0.89 to 0.93), 27.3 dB over 3 images, 0.92 for the most" in can
    assert "More than the mean colour (SSIM 0.80) leaks at a: the whole interval lies above it." in can
    assert re.search(r"Noise of 0.2 .* mean SSIM from 0.\d{3} to 0.\d{3} at a", can)
    assert "its passes ended first" in cannot
    vain = [row | {"status": "no_gain" if row["status"] == "max_steps" else row["status"]} for row in rows_of(tasks)]
    apart = audit_document(vain, tasks, flat)
    assert apart["table"][0]["status"] == "1 of 3 ended where more refinement gains nothing on reference images"
    assert "its passes ended first" not in " ".join(apart["cannot_conclude"])
    assert "What refinement gets" not in cannot
    assert "no differential privacy" in cannot


def test_intervals_end_where_means_can():
    tasks = audit_tasks(TASKS, (), [])
    rows = rows_of(tasks, images=2)
    for row in rows:
        row["ssim"], row["relative_error"] = (0.99, 0.01) if row["image"] else (0.5, 0.5)
    first = audit_document(rows, tasks, [{"image": 0, "psnr": 12.0, "ssim": 0.1}])["table"][0]
    assert (first["ssim"]["low"], first["ssim"]["high"]) == (-1, 1)
    assert first["relative_error"]["low"] == 0
    assert first["relative_error"]["high"] > 1


def test_mean_colour_is_measured_over_all_images():
    x = torch.rand(3, 3, 16, 16)
    preprocess = Preprocess(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    found = mean_colours(InMemoryImages((x - 0.5) / 0.25, preprocess, 2), preprocess)
    flat = x.mean((2, 3), keepdim=True).expand_as(x)
    wanted = [peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=1.0) for a, b in zip(x, flat, strict=True)]
    assert [f["psnr"] for f in found] == pytest.approx(wanted, rel=1e-4)


def test_noise_has_its_level_and_is_an_images_own():
    y = torch.randn(2, 8, 32, 32) * torch.tensor([1.0, 5.0])[:, None, None, None]
    noisy = with_noise(y, 0.3, (4, 7))
    level = (noisy - y).flatten(1).norm(dim=1) / y.flatten(1).norm(dim=1)
    assert level.tolist() == pytest.approx([0.3, 0.3], rel=0.05)
    assert torch.equal(with_noise(y[1:], 0.3, (7,)), noisy[1:])
    assert add_noise(y, 0.0, torch.Generator()) is y


@pytest.fixture(scope="module")
def audited(tmp_path_factory, smooth_pictures):
    """An audit of a small network with max pooling: the folder, and the result."""
    folder = tmp_path_factory.mktemp("audit")
    (folder / "references").mkdir()
    for n, picture in enumerate(smooth_pictures(folder / "images", 30)):
        if n >= 6:
            picture.rename(folder / "references" / picture.name)
    net = torch.nn.Sequential(cases.vgg(), torch.nn.Flatten(), torch.nn.Linear(16 * 16, 5))
    arguments = {"layers": ["0.2"], "noise": (0.5,), "passes": 6, "size": 16, "mean": 0.5, "std": 0.25}
    arguments |= {"reference_images": folder / "references", "out": folder / "run", "pictures": 1}
    return folder, unconv.audit(net, folder / "images", **arguments)


def test_an_audit_from_end_to_end(audited):
    folder, result = audited
    audit = result.document["audit"]
    assert [(e["attacker"], e["noise"]) for e in audit["table"]] == [
        ("linear decoder", 0.0),
        ("linear decoder", 0.5),
        ("refined", 0.0),
        ("refined", 0.5),
        ("refined, with switches", 0.0),
    ]
    clean, noisy = (audit["table"][i]["relative_error"]["mean"] for i in (0, 1))
    assert clean < noisy < 1
    assert all(e["same_class"] is not None for e in audit["table"])
    (bracket,) = result.document["leakage"]["table"]
    assert (bracket["layer"], bracket["noise"]) == ("0.2", 0.5)
    assert 0 < bracket["bound"] < min(bracket["attained"].values())
    assert set(bracket["attained"]) == {"mean image", "linear decoder", "refined"}
    assert any("no attacker gets more than" in sentence for sentence in audit["can_conclude"])
    assert "What no attacker gets of noisy features" in result.page.read_text()
    # noisy results are the audit's alone
    assert len(result.layers[0]["inversion"]) == 3
    assert result.layers[0]["block"] is None
    page = result.page.read_text()
    assert "What cannot" in page
    wanted = {f"{name}.{kind}" for name in ("audit", "noise") for kind in ("svg", "png", "csv")}
    assert wanted <= {p.name for p in (folder / "run/figures").iterdir()}
    table = pq.read_table(folder / "run/results.parquet").to_pydict()
    assert sorted(set(table["noise"])) == [0.0, 0.5]
    assert set(table["same_class"]) <= {0.0, 1.0}


def test_a_decoder_fitted_for_the_noise_beats_one_that_was_not(audited):
    folder, _ = audited
    decoders = {p.stem: LinearDecoder.load(p) for p in (folder / "run/decoders").glob("*.safetensors")}
    assert set(decoders) == {"0.2", "0.2_noise_0.5"}
    net = cases.vgg()
    opened = open_network(net, folder / "images", size=16, mean=0.5, std=0.25, batch=8)
    (batch,) = opened.images
    with torch.no_grad():
        sent = with_noise(net[:3](batch.inputs), 0.5, batch.indices)
    errors = [(decoders[name](sent, (3, 16, 16)) - batch.inputs).norm().item() for name in sorted(decoders)]
    assert errors[1] < errors[0]
