"""One-step IHT against a dense matrix, and which layers it is run on."""

from dataclasses import replace

import pytest
import torch

from unconv.errors import UnconvError
from unconv.paper import table3
from unconv.paper.macro_layers import METHODS, fit_linear, image_decoders, macro_layers, one_step_estimate


def test_macro_layers_read_pooled_blocks(context):
    layers = macro_layers(context)
    assert [(layer.number, layer.reads, layer.name, layer.learned) for layer in layers] == [
        (1, "2", "5", True),
        (2, "7", "10", False),
    ]


def test_errors_against_a_dense_matrix(context):
    block = context.pooled(context.blocks.get("10")).with_gaussian(0)
    x = torch.rand(2, *block.input_shape, generator=torch.Generator().manual_seed(0))
    k = 4
    found = one_step_estimate(block, x, k)
    w = block.operator.to_dense()
    channels, height, width = block.operator.output_shape
    for i in range(2):
        h = (w @ x[i].flatten()).reshape(channels, height, width)
        best = {}
        for c in range(channels):
            for row in range(0, height - 1, 2):
                for column in range(0, width - 1, 2):
                    places = [(c, row + a, column + b) for a in (0, 1) for b in (0, 1)]
                    best[places[0]] = max(places, key=lambda place: abs(h[place]))
        kept = sorted(best.values(), key=lambda place: -abs(h[place]))
        z = torch.zeros_like(h)
        for place in kept[:k]:
            z[place] = h[place]
        estimate = w.T @ z.flatten()
        estimate *= x[i].norm() / estimate.norm()
        error = (estimate - x[i].flatten()).norm() / x[i].norm()
        assert ((found[i] - x[i]).norm() / x[i].norm()).item() == pytest.approx(error.item(), rel=1e-4)


def test_both_spaces(context, decoders):
    result = table3.run(context, decoders)
    ours = result["ours"]
    assert ours["1"]["images"] == 3
    assert 0.3 < ours["1"]["learned"] < 1.2
    assert ours["1"]["random_activations"] == pytest.approx(2**0.5, abs=0.1)
    assert ours["2"]["learned"] is None
    assert any("weights end before 10" in note for note in result["notes"])
    assert ours["1"]["decoder"]["file"] == "tiny-2.safetensors"
    assert set(ours["1"]["image_space"]) == {"trained", "linear", "linear_switches"}
    assert set(ours["2"]["image_space"]) == {"linear", "linear_switches"}
    assert any("Macro layer 2 has no trained decoder" in note for note in result["notes"])
    for errors in ours["1"]["image_space"].values():
        assert errors["decoded"]["true_activations"] == 0
        assert set(errors["decoded"]) == {"true_activations", *METHODS}
    found = ours["1"]["image_space"]["trained"]
    assert found["decoded_in_pixels"]["learned"] < found["decoded"]["learned"]  # the mean makes the reference larger
    _, rows = table3.tables(result)["image space"]
    assert [row[1:3] for row in rows[:3]] == [("trained, all switches", words) for words in table3.COMPARED.values()]
    assert rows[0][-3:] == (0.423, 0.380, 0.610)


def test_decoded_images_against_the_definition(context, decoders):
    layer = macro_layers(context)[0]
    captured = next(context.captured(["2", "5"]))
    x = captured.inputs["5"]
    linear = fit_linear(context, [layer])
    images = {name: decode(x) for name, decode in image_decoders(context, captured, layer, decoders, linear).items()}
    layers = [m for m in context.network.module[:5] if not isinstance(m, torch.nn.ReLU)]
    h = layers[0](captured.batch.inputs).relu()
    pooled, switches = torch.nn.functional.max_pool2d(layers[1](h).relu(), 3, 2, return_indices=True)
    torch.testing.assert_close(pooled, x)
    flat = torch.zeros(*x.shape[:2], 16 * 16).scatter_add(2, switches.flatten(2), pooled.flatten(2))
    flat = flat.unflatten(2, (16, 16))
    decoder = decoders["2"].decoder
    expected = decoder.blocks[1](decoder.blocks[0](flat))
    torch.testing.assert_close(images["trained"], expected * decoder.spread + decoder.centre[:, None, None])
    torch.testing.assert_close(images["linear"], linear["2 linear"](pooled, (3, 16, 16)))
    by_place = torch.zeros(*x.shape[:2], 9, *x.shape[2:])
    for n, k, i, j in torch.cartesian_prod(*map(torch.arange, x.shape)).tolist():
        row, column = divmod(int(switches[n, k, i, j]), 16)
        by_place[n, k, 3 * (row - 2 * i) + column - 2 * j, i, j] = pooled[n, k, i, j]
    expected = linear["2 linear_switches"](by_place.flatten(1, 2), (3, 16, 16))
    torch.testing.assert_close(images["linear_switches"], expected)


def test_a_network_without_macro_layer_is_refused(context):
    with pytest.raises(UnconvError, match="pooled block"):
        table3.run(replace(context, names=("0",)))
