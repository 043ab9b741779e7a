"""What only a GPU shows: large tiles, graphs, streams, waiting, memory, devices, loss scaling."""

import contextlib
import copy

import pytest
import torch

from helpers import (
    DTYPES,
    PAPER,
    SEED,
    activations,
    close,
    dtype_name,
    randn,
    same,
    size_in_bytes,
    tensors,
)
from int8tile import Int8TileConfig, _core
from int8tile.nn import Int8Linear
from int8tile.ops import checks

pytestmark = pytest.mark.cuda
ops = torch.ops.int8tile
GPU = torch.device("cuda", 0)
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
CONFIGS = {
    "split": Int8TileConfig(),
    "no_split": Int8TileConfig(threshold=None),
    "paper": Int8TileConfig.paper(),
    "float_grad_weight": Int8TileConfig(grad_weight=False),
}
EACH_CONFIG = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
A_SECOND = 2_000_000_000  # clock cycles


def case(m=33, n=72, k=96, dtype=torch.float32, config=None):
    """A layer, its input and the gradient of its output."""
    torch.manual_seed(0)
    layer = Int8Linear(k, n, dtype=dtype, config=config).to(GPU)
    x, _, _, g = tensors(m, k=k, n=n, dtype=dtype, device=GPU)
    return layer, x, g


def step(layer, x, g):
    """The output and the gradients of the input, the weight and the bias."""
    y = layer(x)
    return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], g)]


def all_same(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        same(one, other)


# --- The same numbers as on the CPU


@pytest.mark.parametrize("shape", [(2048, 2304, 2304), (2050, 2311, 2309)], ids=str)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("scales", [{}, PAPER], ids=["row", "paper"])
@EACH_DTYPE
def test_shapes_of_many_tiles_equal_the_cpu_every_time(dtype, scales, rounding, shape):
    m, n, k = shape

    def run(device):
        x, w, bias, g = (t.detach() for t in tensors(m, n=n, k=k, dtype=dtype, device=device))
        y, *saved = ops.linear_forward(x, w, bias, **scales)
        how = {"rounding": rounding, "seed": SEED.to(device), **scales}
        return [each.cpu() for each in (y, *ops.linear_backward(g, w, *saved, **how))]

    expected = run("cpu")
    for _ in range(3):
        all_same(run(GPU), expected)


def test_a_frozen_layer_moves_to_the_gpu_and_back():
    x = activations(9, 96)
    layer = Int8Linear(96, 72).requires_grad_(False)
    expected = layer(x)
    same(layer.to(GPU)(x.to(GPU)).cpu(), expected)
    same(layer.cpu()(x), expected)


# --- Graphs: a capture is refused where anything waits for the device or allocates from the driver


def captured(call):
    """A graph of a call, and the results that each replay writes again."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()  # kernels are loaded when they run first
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    return graph, results


@pytest.mark.parametrize(
    "config",
    [
        Int8TileConfig(),
        Int8TileConfig(threshold=None),
        Int8TileConfig.paper(grad_rounding="nearest"),
    ],
    ids=["split", "no_split", "paper"],
)
@EACH_DTYPE
def test_a_captured_step_replays_on_other_data(dtype, config):
    layer, x, g = case(dtype=dtype, config=config)
    graph, results = captured(lambda: step(layer, x, g))
    for seed, outliers in enumerate([(), (1,), range(10, 50)]):  # 40 are over the capacity
        like = {"dtype": dtype, "seed": seed, "device": GPU}
        with torch.no_grad():
            x.copy_(activations(*x.shape, outliers=outliers, **like))
            g.copy_(randn(*g.shape, **like))
            layer.weight.mul_(-1.5)
        graph.replay()
        all_same(results, step(layer, x, g))


def test_replays_of_a_captured_step_draw_new_seeds():
    layer, x, g = case(config=Int8TileConfig.paper())
    graph, results = captured(lambda: step(layer, x, g))

    def replay():
        graph.replay()
        return [each.clone() for each in results]

    torch.manual_seed(3)
    first, second = replay(), replay()
    torch.manual_seed(3)
    all_same(replay(), first)
    for one, other in zip(first[1:3], second[1:3], strict=True):
        assert not torch.equal(one, other)


# --- Streams


def test_work_follows_the_current_stream():
    """The stream is busy at first: on another one the step would read the values of before."""
    layer, x, g = case()
    other = activations(*x.shape, seed=9, device=GPU).requires_grad_()
    expected = step(layer, other, g)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(A_SECOND)
        with torch.no_grad():
            x.copy_(other)
        results = step(layer, x, g)
    stream.synchronize()
    all_same(results, expected)


def test_streams_share_no_workspace():
    layer, _, g = case(m=512, n=768, k=1024)
    inputs = [activations(512, 1024, seed=seed, device=GPU).requires_grad_() for seed in range(4)]
    expected = [step(layer, x, g) for x in inputs]
    streams = [torch.cuda.Stream() for _ in inputs]
    torch.cuda.synchronize()
    for _ in range(10):
        results = []
        for stream, x in zip(streams, inputs, strict=True):
            with torch.cuda.stream(stream):
                results.append(step(layer, x, g))
        torch.cuda.synchronize()
        for ours, theirs in zip(results, expected, strict=True):
            all_same(ours, theirs)


# --- Nothing waits for the GPU


@contextlib.contextmanager
def a_busy_gpu():
    """The GPU has work for a second, and what follows must neither wait nor take as long."""
    torch.cuda.synchronize()
    torch.cuda._sleep(A_SECOND)
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
        done = torch.cuda.Event()
        done.record()
        assert not done.query(), "the host waited for the GPU"
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()


def every_op():
    x, w, _, g = (t.detach() for t in tensors(33, k=96, n=72, device=GPU))
    a = torch.ones(9, 40, dtype=torch.int8, device=GPU)
    seed = SEED.to(GPU)

    def call():
        _, *saved = ops.linear_forward(x, w)
        ops.linear_forward_only(x, w)
        ops.linear_grad_input(g, w, rounding="stochastic", seed=seed)
        ops.linear_grad_weight(g, *saved, 96, rounding="stochastic", seed=seed)
        ops.linear_backward(g, w, *saved)
        block, _, _, *rest = ops.quantize_input(x)
        ops.linear_multiply(block, *rest, w)
        ops.pack_weight(w, transpose=True)
        ops.quantize(x, rounding="stochastic", seed=seed)
        ops.quantize_split(x)
        ops.gemm(a, a, a, a)

    return call


@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
def test_no_op_waits_for_the_gpu():
    call = every_op()
    call()
    with a_busy_gpu():
        call()


@EACH_CONFIG
@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
def test_no_training_step_waits_for_the_gpu(config):
    layer, x, g = case(config=config)
    step(layer, x, g)
    with a_busy_gpu():
        step(layer, x, g)


# --- Memory


def requested(when):
    return torch.cuda.memory_stats(GPU)[f"requested_bytes.all.{when}"]


@EACH_DTYPE
@pytest.mark.parametrize("grad_split", [False, True])
def test_only_the_results_stay_and_the_peak_is_the_workspace(dtype, grad_split):
    m, n, k = 300, 200, 500
    x, w, bias, g = (t.detach() for t in tensors(m, n=n, k=k, dtype=dtype, device=GPU))
    _, *saved = ops.linear_forward(x, w, bias)
    capacity = len(saved[3])
    forward = checks.block_bytes(m, k, capacity, GPU) + 4 * n  # and the bias in float32
    forward += _core.cuda_quantize_workspace(m, k)
    forward += _core.cuda_multiply_workspace(m, n, k, capacity, False)
    backward = _core.cuda_grad_input_workspace(m, n, k, False)
    backward += _core.cuda_grad_weight_workspace(m, n, k, capacity, grad_split)
    for call, workspace in (
        (lambda: ops.linear_forward(x, w, bias), forward),
        (lambda: ops.linear_backward(g, w, *saved, grad_split=grad_split), backward),
    ):
        before = requested("current")
        torch.cuda.reset_peak_memory_stats(GPU)
        results = call()
        size = size_in_bytes(results)
        assert requested("current") - before == size
        assert requested("peak") - before <= size + workspace
        del results


@pytest.fixture
def roomy():
    """Room for the operands of one large layer, in int8 and in bfloat16."""
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info(GPU)[0] < 32 << 30:
        pytest.skip("needs 32 GiB of free GPU memory")
    yield
    torch.cuda.empty_cache()


@pytest.mark.parametrize(
    ("m", "n", "k"),
    [(70_000, 32_768, 64), (70_000, 64, 32_768), (64, 70_000, 32_768)],
    ids=["output", "input", "weight"],
)
def test_matrices_of_more_than_2_to_the_31_elements(roomy, m, n, k):
    """Their first and last rows and columns are those of the layer cut down to them."""
    torch.manual_seed(0)
    x, w, bias, g = (
        torch.randn(shape, dtype=torch.bfloat16, device=GPU)
        for shape in ((m, k), (n, k), (n,), (m, n))
    )
    x.clamp_(-4, 4)[:, 3] = 40  # the one outlier column, in any part of x
    y, *saved = ops.linear_forward(x, w, bias)
    grad_input, grad_weight, grad_bias = ops.linear_backward(g, w, *saved)
    for part in (slice(64), slice(-64, None)):
        same(y[part, part], ops.linear_forward(x[part], w[part], bias[part])[0])
        same(grad_input[part, part], ops.linear_grad_input(g[part], w[:, part]))
        exact = g[:, part].float().t() @ x[:, part].float()
        close(grad_weight[part, part], exact, 0.03)
        close(grad_bias[part], g[:, part].float().sum(0), 1e-3)


# --- Devices and loss scaling


@pytest.fixture
def second():
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one CUDA device only")
    return torch.device("cuda", 1)


def test_a_layer_runs_on_a_device_that_is_not_the_current_one(second):
    layer, x, g = case()
    expected = step(layer, x, g)
    x = x.detach().to(second).requires_grad_()
    results = step(copy.deepcopy(layer).to(second), x, g.to(second))
    assert {each.device for each in results} == {second}
    assert torch.cuda.current_device() == GPU.index
    all_same([each.to(GPU) for each in results], expected)


def test_operands_on_two_devices_are_refused(second):
    layer, x, _ = case()
    with pytest.raises(ValueError, match="weight must be on cuda:1 like the first argument; got"):
        layer(x.to(second))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_scaler_skips_the_step_of_a_value_that_is_not_finite(bad):
    layer, x, _ = case()
    x = x.detach()
    before = layer.weight.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cuda", init_scale=16.0)

    def train(x):
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16):
            loss = layer(x).float().square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    spoiled = x.clone()
    spoiled[3, 4] = bad
    train(spoiled)
    same(layer.weight.detach(), before)
    assert scaler.get_scale() == 8.0
    train(x)
    assert not torch.equal(layer.weight, before)
    assert scaler.get_scale() == 8.0
