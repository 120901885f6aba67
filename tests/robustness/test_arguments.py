"""Arguments out of range: every public function says in one line what is wrong, whatever the number."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unconv.block_extraction import find_conv_blocks
from unconv.certify.bracket import delta_bracket
from unconv.certify.exact import exact_delta
from unconv.certify.lower_bound import lower_bound
from unconv.certify.stability import certify
from unconv.certify.upper_bound import upper_bound
from unconv.decode.block_input import decode_block, paper_code
from unconv.decode.convex import convex
from unconv.decode.linear_system import equations, min_norm
from unconv.decode.transpose import transpose
from unconv.errors import UnconvError
from unconv.images import ImageStream, psnr, quality, save_image, ssim, to_uint8
from unconv.measure.coherence import coherence
from unconv.measure.rip import RatioSummary, draw_codes, sample_ratios
from unconv.measure.sparsity import SparsityStatistics, k_from
from unconv.measure.theorems import theorem_31_delta, theorem_33_bound
from unconv.operators import ConvOperator, gaussian_like, per_axis
from unconv.preprocessing import Preprocess, channels, normalisation
from unconv.recover import activation_recovery, cosamp, fista, htp, iht, niht
from unconv.sparsity import AveragePool, Pooled, TopK, Window, keep_largest

torch.manual_seed(0)
W = ConvOperator(torch.randn(4, 2, 3, 3), (2, 6, 6), padding=1)
X = torch.randn(2, 2, 6, 6)
H = torch.randn(2, 4, 6, 6)
MODEL = Pooled(2, 5)
CODE = MODEL.project(H)
NET = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2)).eval()
BLOCK = find_conv_blocks(NET.requires_grad_(False), X[:1]).blocks[0]
BLOCK_CODE = BLOCK.encode(X)

BELOW_1 = st.integers(-(10**6), 0)
NEGATIVE = st.integers(-(10**6), -1)
NOT_FINITE = st.sampled_from([math.nan, math.inf, -math.inf])
BELOW_0 = st.floats(max_value=-1e-9)
NOT_A_TOLERANCE = st.just(math.nan) | BELOW_0
NOT_POSITIVE = st.floats(max_value=0, allow_nan=False) | st.just(math.nan)
SEEDS = st.sampled_from([2**64, -(2**63) - 1, 10**30])  # of torch; numpy takes any that is not negative
WORDS = st.sampled_from(["", "Full", "unknown", "0"])
OTHER_INPUTS = st.sampled_from([torch.zeros(2, 2, 6, 5), torch.zeros(2, 3, 6, 6), torch.zeros(6, 6), torch.zeros(0)])
BAD_INPUTS = OTHER_INPUTS | st.sampled_from([torch.full((1, 2, 6, 6), math.nan), torch.full((1, 2, 6, 6), math.inf)])
WRONG_SHAPES = st.sampled_from([torch.zeros(2, 4, 6, 5), torch.zeros(4, 5, 6), torch.zeros(6), torch.zeros(2, 1, 1, 1)])
BAD_PER_AXIS = st.lists(st.integers(1, 3), min_size=3, max_size=5) | st.just([])
BAD_WEIGHTS = st.sampled_from([
    *(torch.zeros(shape) for shape in [(4,), (4, 2), (4, 2, 1, 1, 1, 1), (4, 3, 3, 3), (0, 2, 3, 3), (4, 2, 0, 3)]),
    torch.zeros(4, 2, 3, 3, dtype=torch.int64),
])
BAD_FILTERS = st.sampled_from([torch.full((4, 2, 3, 3), math.nan), torch.zeros(4, 2)])


def over(function, *positional, **usual):
    """A function of one wrong argument, with usual values for the others."""
    return lambda **given: function(*positional, **usual | given)


K_OUT_OF_RANGE = BELOW_1 | st.integers(37, 10**9)
SHAPES = [(), (2,), (2, 6), (2, 6, 6, 6), (3, 6, 6), (2, 0, 6), (2, -6, 6), (2, 2, 6)]
GEOMETRY = {"stride": BELOW_1 | BAD_PER_AXIS, "dilation": BELOW_1 | BAD_PER_AXIS}
SAMPLED = {"k": K_OUT_OF_RANGE, "samples": BELOW_1, "seed": NEGATIVE}
BOUNDED = {"k": K_OUT_OF_RANGE, "boundary": WORDS, "region": BELOW_1 | st.integers(7, 99)}
TOO_LARGE = {"side": st.integers(7, 10**6)}
RECOVERED = {"operator": W, "x": X, "model": MODEL}
SAMPLES = {"operator": W, "model": Pooled(2), "k": 3, "samples": 4}
DELTA = {"operator": W, "region": 2, "k": 2}
BAD_CODE = CODE.__class__(H, None, (4, 6, 5))
TABLE = [
    # linear maps and codes
    ("per_axis", over(per_axis, dims=2, name="stride"), {"value": BAD_PER_AXIS}),
    (
        "ConvOperator",
        over(ConvOperator, weight=W.weight, input_shape=(2, 6, 6)),
        {
            "weight": BAD_WEIGHTS,
            "input_shape": st.sampled_from(SHAPES),
            "stride": BELOW_1 | BAD_PER_AXIS,
            "padding": NEGATIVE | BAD_PER_AXIS,
            "dilation": BELOW_1 | BAD_PER_AXIS | st.integers(3, 10**6),
            "groups": BELOW_1 | st.integers(2, 10**6),
        },
    ),
    ("forward", W.forward, {"x": WRONG_SHAPES}),
    ("adjoint", W.adjoint, {"z": WRONG_SHAPES}),
    ("norm", W.norm, {"max_steps": BELOW_1, "tolerance": NOT_A_TOLERANCE, "seed": SEEDS}),
    ("with_weight", W.with_weight, {"weight": BAD_WEIGHTS}),
    ("gaussian", W.gaussian, {"seed": SEEDS}),
    ("gaussian_like", over(gaussian_like, W.weight), {"seed": SEEDS}),
    (
        "Window.of",
        over(Window.of, dims=2, kernel=2),
        GEOMETRY | {"kernel": BELOW_1 | BAD_PER_AXIS, "padding": NEGATIVE | BAD_PER_AXIS | st.integers(2, 10**6)},
    ),
    ("Window.max_pool", lambda side: Window.of(2, side).max_pool(H), TOO_LARGE),
    ("Window.starts", lambda side: Window.of(2, side).starts((6, 6)), TOO_LARGE),
    ("AveragePool", lambda side: AveragePool(Window.of(2, side)).forward(H), TOO_LARGE),
    ("Pooled", lambda r: Pooled(r).project(H), {"r": BELOW_1 | BAD_PER_AXIS.map(tuple) | st.integers(7, 99)}),
    ("Pooled.region", Pooled, {"region": BELOW_1 | WORDS | NOT_FINITE}),
    ("Pooled.k", over(Pooled, 2), {"k": NEGATIVE | WORDS | NOT_FINITE}),
    ("TopK", TopK, {"k": NEGATIVE | WORDS | NOT_FINITE}),
    ("ConvOperator.stride", over(ConvOperator, torch.ones(4, 2, 3, 3), (2, 6, 6)), {"stride": WORDS | NOT_FINITE}),
    ("keep_largest", over(keep_largest, H), {"k": NEGATIVE}),
    # recover and decode
    *(
        (solver.__name__, over(solver, **RECOVERED), {"x": BAD_INPUTS, "max_steps": BELOW_1})
        for solver in (niht, htp, cosamp, activation_recovery)
    ),
    ("iht", over(iht, **RECOVERED), {"x": OTHER_INPUTS, "model": WORDS, "steps": BELOW_1, "step_size": NOT_FINITE}),
    (
        "fista",
        over(fista, operator=W, x=X),
        {"x": BAD_INPUTS, "max_steps": BELOW_1, "weight": NOT_POSITIVE | NOT_FINITE},
    ),
    ("activation_recovery.weight", over(activation_recovery, **RECOVERED), {"weight": NOT_POSITIVE | NOT_FINITE}),
    ("transpose", over(transpose, W, CODE), {"norm": st.sampled_from([torch.ones(3), torch.ones(2, 2)])}),
    ("min_norm", lambda **given: min_norm(equations(BLOCK, BLOCK_CODE), **given), {"max_steps": NEGATIVE}),
    (
        "convex",
        over(convex, BLOCK, BLOCK_CODE),
        {"prior": WORDS, "max_steps": NEGATIVE},
    ),
    (
        "decode_block",
        over(decode_block, block=BLOCK, code=BLOCK_CODE, method="convex"),
        {"method": WORDS, "code": st.just(BAD_CODE)},
    ),
    ("paper_code", over(paper_code, block=BLOCK, x=X, k=3), {"x": WRONG_SHAPES, "k": NEGATIVE}),
    # measure and certify
    (
        "k_from",
        over(k_from, fraction=0.5, regions=9),
        {"fraction": BELOW_0 | st.floats(min_value=1.001) | st.just(math.nan), "regions": BELOW_1},
    ),
    (
        "SparsityStatistics",
        lambda **given: SparsityStatistics().update(**{"block": "a", "activated": H} | given),
        {"activated": st.sampled_from([H / 0, torch.full_like(H, math.nan)]), "pooled": st.just(H[:1])},
    ),
    ("sample_ratios", over(sample_ratios, **SAMPLES), SAMPLED | {"boundary": WORDS, "method": WORDS}),
    (
        "draw_codes",
        lambda **given: list(draw_codes(W, Pooled(2), **{"k": 3, "samples": 4} | given)),
        SAMPLED | {"batch": BELOW_1},
    ),
    ("RatioSummary", RatioSummary.of, {"ratios": st.sampled_from([torch.zeros(0), torch.tensor([1, math.nan])])}),
    *((f.__name__, over(f, **DELTA), BOUNDED) for f in (lower_bound, delta_bracket, upper_bound, exact_delta)),
    ("lower_bound.effort", over(lower_bound, **DELTA), {"effort": BELOW_0 | NOT_FINITE, "seed": SEEDS}),
    (
        "theorem_31",
        over(theorem_31_delta, k=2, channels=2, length=3, size=9, filters=4),
        dict.fromkeys(("k", "channels", "length", "size", "filters"), BELOW_1)
        | {"constant": NOT_POSITIVE, "failure": NOT_POSITIVE | st.floats(min_value=1)},
    ),
    (
        "theorem_33",
        over(theorem_33_bound, delta_k=0.1, delta_2k=0.2),
        {
            "delta_k": BELOW_0 | st.floats(min_value=0.21) | st.just(math.nan),
            "delta_2k": st.floats(max_value=0.09) | st.just(math.nan),
        },
    ),
    ("certify", over(certify, W), {"mask": st.just(torch.ones(4, 6, 5)), "start": st.just(torch.ones(2, 6))}),
    ("coherence", lambda **given: coherence(W.with_weight(**given)), {"weight": BAD_FILTERS}),
    # images
    ("channels", over(channels, name="mean"), {"value": st.text(alphabet="abc,;. -", max_size=9) | NOT_FINITE}),
    ("normalisation", over(normalisation, 0), {"std": NOT_POSITIVE | NOT_FINITE}),
    ("ImageStream", over(ImageStream, [], Preprocess()), {"batch_size": BELOW_1}),
    ("to_uint8", to_uint8, {"pixels": st.just(torch.zeros(6)) | st.just(torch.full((3, 4, 4), math.nan))}),
    (
        "save_image",
        over(save_image, torch.zeros(3, 4, 4)),
        {"path": st.text(max_size=5).map(lambda s: f"/nowhere/{s.replace('/', '')}.exe")},
    ),
    *((f.__name__, over(f, torch.zeros(3, 8, 8)), {"estimate": WRONG_SHAPES}) for f in (psnr, ssim, quality)),
]
CASES = [
    pytest.param(call, name, bad, id=f"{title}-{name}") for title, call, table in TABLE for name, bad in table.items()
]


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
@pytest.mark.parametrize(("call", "name", "bad"), CASES)
def test_out_of_range_is_one_line(call, name, bad, data):
    value = data.draw(bad)
    refused = (UnconvError, ValueError) if name == "seed" else UnconvError  # of a seed torch and numpy speak
    try:
        found = call(**{name: value})
    except refused as error:
        said = str(error)
        assert said
        assert "\n" not in said
        assert len(said) < 500
    else:
        pytest.fail(f"{name} = {value!r} gave {found!r}")
