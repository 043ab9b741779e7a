"""torch.compile without graph breaks: forward and backward as in eager, in int8."""

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd

import int8tile
from helpers import activations, randn, same
from int8tile import Int8TileConfig
from int8tile.nn import Int8Linear

pytestmark = [
    # torch 2.13's inductor imports a module that still uses torch.jit.
    pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning"),
]

# Traces and partitions the joint graph, then runs torch's own kernels: no C++ to build.
TRACED = "aot_eager"
CONFIGS = {
    "split": Int8TileConfig(),
    "no_split": Int8TileConfig(threshold=None),
    "paper_nearest": Int8TileConfig.paper(grad_rounding="nearest"),
    "float_grad_weight": Int8TileConfig(grad_weight=False),
    "float_forward": Int8TileConfig(forward=False),
}


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def model(device):
    def build(config):
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Linear(48, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 40))
        int8tile.convert_(layers, config)
        return layers.to(device)

    return build


def run(module, x, seed=5):
    """Output and every gradient, the input's first; copies, since CUDA graphs reuse memory."""
    x = x.detach().clone().requires_grad_()
    module.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    y = module(x)
    y.square().sum().backward()
    results = [y.detach(), x.grad, *(p.grad for p in module.parameters())]
    return [each.clone() for each in results]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_compiled_forward_and_backward_equal_eager(config, model, device):
    layers, x = model(config), activations(2, 9, 48, device=device)
    eager = run(layers, x)
    compiled = run(torch.compile(layers, fullgraph=True, backend=TRACED), x)
    for ours, theirs in zip(compiled, eager, strict=True):
        same(ours, theirs)


def test_stochastic_gradients_are_traced_with_their_seed(device):
    # One layer: torch may draw the seeds of several in another order than eager does.
    layer = Int8Linear(48, 40, device=device, config=Int8TileConfig.paper())
    x = activations(9, 48, device=device)
    eager = run(layer, x)
    compiled = torch.compile(layer, fullgraph=True, backend=TRACED)
    for ours, theirs in zip(run(compiled, x), eager, strict=True):
        same(ours, theirs)
    assert not torch.equal(run(compiled, x, seed=6)[1], eager[1])


def remembering():
    """A backend, and the list to which it adds the ops of each graph that it traces."""
    called = []

    def remember(graph, _):
        called.extend(str(node.target) for node in graph.graph.nodes)
        return make_boxed_func(graph.forward)

    return aot_autograd(fw_compiler=remember, bw_compiler=remember), called


def test_the_traced_graphs_hold_the_int8_ops(model, device):
    backend, called = remembering()
    compiled = torch.compile(model(Int8TileConfig()), fullgraph=True, backend=backend)
    run(compiled, activations(9, 48, device=device))
    for op in ("linear_forward", "linear_backward"):
        assert called.count(f"int8tile.{op}.default") == 2, op


def test_one_graph_serves_every_batch_size(model, device):
    layers = model(Int8TileConfig())
    compiled = torch.compile(layers, fullgraph=True, backend=TRACED, dynamic=True)
    for tokens in (3, 8, 130):
        x = activations(tokens, 48, device=device)
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        for ours, theirs in zip(run(compiled, x), run(layers, x), strict=True):
            same(ours, theirs)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_few_tokens_compile_to_float_and_many_to_int8(dynamic, model, device):
    layers = model(Int8TileConfig(min_tokens=8))
    backend, called = remembering()
    compiled = torch.compile(layers, fullgraph=True, backend=backend, dynamic=dynamic)
    for lead in ((3,), (7,), (2, 3)):
        x = activations(*lead, 48, device=device)
        for ours, theirs in zip(run(compiled, x), run(layers, x), strict=True):
            same(ours, theirs)
    assert not any("int8tile" in op for op in called)
    for lead in ((8,), (130,), (2, 4), (3,)):
        x = activations(*lead, 48, device=device)
        for ours, theirs in zip(run(compiled, x), run(layers, x), strict=True):
            same(ours, theirs)
    graphs = called.count("int8tile.linear_forward.default") / 2
    assert graphs == (2 if dynamic else 3)  # static: one for each shape


def test_a_frozen_weight_compiles_and_is_never_stale(device):
    layer = Int8Linear(48, 40, device=device).requires_grad_(False)
    x = activations(9, 48, device=device)
    layer(x)  # packs and keeps the weight, on CPU
    compiled = torch.compile(layer, fullgraph=True, backend=TRACED)
    same(compiled(x), layer(x))
    layer.weight.data[0, 0] += 100.0
    layer.invalidate()
    same(compiled(x), layer(x))


def test_compiled_without_gradients(model, device):
    layers, x = model(Int8TileConfig()), activations(9, 48, device=device)
    compiled = torch.compile(layers, fullgraph=True, backend=TRACED)
    with torch.no_grad():
        same(compiled(x), layers(x))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_compiled_under_autocast_keeps_dtypes(half, model, device):
    layers, x = model(Int8TileConfig()), activations(9, 48, device=device)
    compiled = torch.compile(layers, fullgraph=True, backend=TRACED)
    with torch.autocast(device.type, half):
        y, eager = compiled(x), layers(x)
    assert y.dtype == half
    same(y, eager)


# Inductor of torch 2.6 says it of itself where it keys its cache.
SKIPFILES = pytest.mark.filterwarnings("ignore:Skipping serialization of skipfiles")


@SKIPFILES
def test_inductor_trains_like_eager(device):
    """On CUDA the graphs are warmed up, recorded and replayed, with other outliers each time."""
    layer = Int8Linear(48, 40, device=device)
    compiled = torch.compile(layer, fullgraph=True, mode="reduce-overhead")
    for step in range(5):
        x = activations(9, 48, seed=step, outliers=range(step), device=device)
        for ours, theirs in zip(run(compiled, x), run(layer, x), strict=True):
            same(ours, theirs)


@SKIPFILES
def test_inductor_draws_a_new_seed_each_time(device):
    layer = Int8Linear(48, 40, device=device, config=Int8TileConfig.paper())
    compiled = torch.compile(layer, fullgraph=True)
    x = activations(9, 48, device=device).requires_grad_()
    g = randn(9, 40, seed=3, device=device)
    torch.manual_seed(0)
    first, second = (torch.autograd.grad(compiled(x), x, g)[0] for _ in range(2))
    torch.manual_seed(0)
    (again,) = torch.autograd.grad(compiled(x), x, g)
    assert not torch.equal(first, second)
    same(again, first)


def test_export_holds_the_int8_forward(model, device):
    layers = model(Int8TileConfig()).requires_grad_(False)
    x = activations(9, 48, device=device)
    exported = torch.export.export(layers, (x,))
    same(exported.module()(x), layers(x))
    assert "int8tile.linear" in exported.graph_module.code
