from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cases import Net, conv
from unconv.errors import UnconvError
from unconv.graph import Graph, trace


def operations(graph: Graph) -> list[str]:
    return [n.operation if isinstance(n.operation, str) else n.path for n in graph.nodes]


def traced(forward, **parts: nn.Module) -> tuple[Net, Graph]:
    net = Net(forward, conv=conv(), **parts)
    return net, trace(net, torch.randn(1, 3, 5, 5))


def test_nodes_say_what_reads_what():
    def forward(net, x):
        h = F.relu(net.bn(net.conv(x)), inplace=True)
        h = F.max_pool2d(h, 2, stride=1)
        a, b = h.chunk(2, dim=1)
        return torch.cat([a, net.act(b) + 1], 1)

    net = Net(forward, conv=conv(), bn=nn.BatchNorm2d(4), act=nn.SiLU())
    graph = trace(net, torch.zeros(1, 3, 6, 8))

    assert graph.stopped is None
    assert operations(graph) == ["input", "conv", "bn", "relu", "max_pool2d", "chunk", "act", "add", "cat", "output"]
    assert [n.inputs for n in graph.nodes] == [(), (0,), (1,), (2,), (3,), (4,), (5,), (6,), (5, 7), (8,)]
    assert [n.users for n in graph.nodes] == [(1,), (2,), (3,), (4,), (5,), (6, 8), (7,), (8,), (9,), ()]
    relu, pool, chunk = graph.nodes[3:6]
    assert graph.nodes[1].operation is net.conv
    assert (pool.input_shape, pool.shape, chunk.shape) == ((1, 4, 6, 8), (1, 4, 5, 7), (1, 2, 5, 7))
    assert pool.arguments == (2,)
    assert pool.options["stride"] == 1
    assert graph.only_reader(relu) is pool
    assert graph.only_reader(chunk) is None


def test_what_reads_a_tensor_changed_in_place_reads_the_change():
    def forward(net, x):
        h = net.conv(x)
        net.act(h)
        return h + 1

    _, graph = traced(forward, act=nn.ReLU(inplace=True))
    assert operations(graph) == ["input", "conv", "act", "add", "output"]
    assert [n.inputs for n in graph.nodes[1:]] == [(0,), (1,), (2,), (3,)]


def test_a_tensor_changed_through_a_view_has_no_known_maker():
    def forward(net, x):
        h = net.conv(x)
        h[:, :1].relu_()
        return net.act(h)

    net, graph = traced(forward, act=nn.ReLU())
    act = next(n for n in graph.nodes if n.operation is net.act)
    assert act.inputs == (None,)
    assert graph.nodes[1].users == ()


def test_what_the_output_does_not_depend_on_is_no_user():
    def forward(net, x):
        h = net.conv(x)
        net.act(h)
        h.mean()
        return {"scores": [net.act(h)]}

    _, graph = traced(forward, act=nn.ReLU())
    assert operations(graph) == ["input", "conv", "act", "mean", "act", "output"]
    assert graph.nodes[1].users == (4,)


def test_what_one_forward_pass_leaves_behind_does_not_reach_the_next():
    def forward(net, x):
        net.seen = x if net.seen is None else net.seen
        if x.sum() > 0:
            x = x + 1
        return net.conv(net.seen)

    net = Net(forward, conv=conv())
    net.seen = None
    trace(net, torch.randn(1, 3, 5, 5))
    graph = trace(net, torch.randn(1, 3, 5, 5))
    assert graph.nodes[operations(graph).index("conv")].inputs == (0,)
    assert net.seen is None


def test_an_exception_that_the_network_catches_does_not_confuse_the_paths():
    def inner(net, x):
        raise ValueError("cannot")

    def forward(net, x):
        try:
            x = net.inner(x)
        except ValueError:
            x = x + 1
        return net.conv(x)

    net = Net(lambda net, x: net.outer(x), outer=Net(forward, inner=Net(inner), conv=conv()))
    graph = trace(net, torch.randn(1, 3, 5, 5))
    assert [(n.path, n.inputs) for n in graph.nodes[1:3]] == [("outer", (0,)), ("outer.conv", (1,))]


@pytest.mark.parametrize("fails", [False, True])
def test_the_network_and_its_input_are_left_as_they_were(fails):
    def forward(net, x):
        net.calls += 1
        net.state = net.state + 1
        net.last = net.act(x)
        h = net.bn(net.conv(net.last))
        return net.linear(h) if fails else h

    net = Net(forward, conv=conv(), bn=nn.BatchNorm2d(4), act=nn.ReLU(inplace=True), linear=nn.Linear(1000, 2))
    net.train()
    net.bn.eval()
    net.calls = 0
    net.register_buffer("state", torch.zeros(1))
    before = copy.deepcopy(net.state_dict())
    image = torch.randn(1, 3, 5, 5)
    kept = image.clone()

    trace(net, image)

    assert torch.equal(image, kept)
    assert [net.training, net.conv.training, net.bn.training] == [True, True, False]
    assert net.calls == 0
    assert not hasattr(net, "last")
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._forward_hooks_always_called for m in net.modules())


def test_the_input_follows_the_type_and_device_of_the_network():
    net = nn.Sequential(conv(), nn.ReLU())
    assert trace(net.double(), torch.randn(1, 3, 5, 5)).stopped is None
    assert trace(net.bfloat16(), torch.randn(1, 3, 5, 5)).stopped is None
    assert trace(net.to("meta"), torch.randn(1, 3, 5, 5)).nodes[2].shape == (1, 4, 5, 5)
    words = nn.Sequential(nn.Embedding(10, 3), nn.Conv1d(5, 2, 3))
    assert trace(words, torch.zeros(1, 5, dtype=torch.int64)).stopped is None


def test_tracing_works_inside_inference_mode():
    with torch.inference_mode():
        net = nn.Sequential(conv(), nn.ReLU(inplace=True))
        graph = trace(net, torch.randn(1, 3, 5, 5))
    assert operations(graph) == ["input", "0", "1", "output"]


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
def test_compiled_networks_are_refused():
    net = nn.Sequential(conv())
    with pytest.raises(UnconvError, match=r"the network is compiled; give the nn\.Module"):
        trace(torch.jit.trace(net, torch.randn(1, 3, 5, 5)), torch.randn(1, 3, 5, 5))
    with pytest.raises(UnconvError, match="1 is compiled"):
        trace(nn.Sequential(net, torch.compile(net)), torch.randn(1, 3, 5, 5))
    net.compile()
    with pytest.raises(UnconvError, match="the network is compiled"):
        trace(net, torch.randn(1, 3, 5, 5))
