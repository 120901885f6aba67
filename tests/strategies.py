"""Random convolutions and pooling windows, for hypothesis."""

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
