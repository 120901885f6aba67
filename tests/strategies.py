"""Random convolutions and pooling windows, for hypothesis, and the regions of a window by definition."""

import math
from itertools import product

from hypothesis import strategies as st

from cases import draw
from unconv.operators import ConvOperator
from unconv.sparsity import Window


@st.composite
def convolutions(choose):
    """A random geometry in which at least one shift fits."""
    d = choose(st.integers(1, 3))
    axis = st.tuples(*[st.integers(1, 3 if d < 3 else 2)] * d)
    kernel, stride, dilation = choose(axis), choose(axis), choose(axis)
    padding = choose(st.tuples(*[st.integers(0, 2)] * d))
    extra = choose(st.tuples(*[st.integers(0, 4 if d < 3 else 2)] * d))
    spatial = [max(1, dl * (k - 1) + 1 - 2 * p) + e for k, dl, p, e in zip(kernel, dilation, padding, extra)]
    groups = choose(st.integers(1, 3))
    channels, filters = groups * choose(st.integers(1, 2)), groups * choose(st.integers(1, 3))
    weight = draw(filters, channels // groups, *kernel, seed=choose(st.integers(0, 999)))
    return ConvOperator(weight, (channels, *spatial), stride=stride, padding=padding, dilation=dilation, groups=groups)


@st.composite
def windows(choose, d):
    """Regions in so many dimensions, and the smallest map that holds one."""
    axis = st.tuples(*[st.integers(1, 3)] * d)
    kernel, stride, dilation = choose(axis), choose(axis), choose(st.tuples(*[st.integers(1, 2)] * d))
    padding = tuple(choose(st.integers(0, k // 2)) for k in kernel)
    spatial = tuple(max(1, dl * (k - 1) + 1 - 2 * p) for k, dl, p in zip(kernel, dilation, padding))
    window = Window.of(d, kernel, stride=stride, padding=padding, dilation=dilation, ceil_mode=choose(st.booleans()))
    return window, spatial


def regions(window, spatial):
    """Every region as its list of flat indices inside the map."""
    axes = []
    for n, starts, k, d in zip(spatial, window.starts(spatial), window.kernel, window.dilation):
        axes.append([[s + d * i for i in range(k) if 0 <= s + d * i < n] for s in starts])
    for region in product(*axes):
        yield [sum(p * math.prod(spatial[a + 1 :]) for a, p in enumerate(place)) for place in product(*region)]
