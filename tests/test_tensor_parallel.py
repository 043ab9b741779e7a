"""Int8Linear with DTensor weights: which results are those of one process bit for bit."""

import pytest
import torch
from torch import nn

import int8tile
from helpers import activations, close, randn, same
from int8tile import Int8TileConfig
from int8tile.nn import Int8Linear

M, K, N = 24, 64, 48
TOLERANCE = 0.02  # of the root mean square: what int8 itself loses here
CONFIG = Int8TileConfig()


def layer(config=CONFIG, bias=True, k=K, n=N):
    torch.manual_seed(1)
    return Int8Linear(k, n, bias=bias, config=config)


def step(module, x, g):
    """Output and gradients."""
    y = module(x)
    y.backward(g)
    return y.detach(), x.grad, *(p.grad for p in module.parameters())


def one_process(config=CONFIG, bias=True, k=K, n=N):
    x = activations(M, k).requires_grad_()
    return step(layer(config, bias, k, n), x, randn(M, n, seed=3))


def whole(tensor):
    """A plain tensor; a sum over the ranks may still be under way in one of another class."""
    if hasattr(tensor, "full_tensor"):
        tensor = tensor.full_tensor()
    return tensor.wait() if hasattr(tensor, "wait") else tensor


def mesh(*shape):
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", shape or (2,))


def parallel(rank, style, config=CONFIG, bias=True, k=K, n=N):
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    plan = {
        "columns": ColwiseParallel(output_layouts=Replicate()),
        "rows": RowwiseParallel(input_layouts=Replicate()),
        # As in sequence parallelism: tokens are sharded outside of the layer.
        "columns of shards": ColwiseParallel(
            input_layouts=Shard(0), output_layouts=Shard(0), use_local_output=False
        ),
        "rows of shards": RowwiseParallel(
            input_layouts=Shard(0), output_layouts=Shard(0), use_local_output=False
        ),
    }[style]
    module = parallelize_module(layer(config, bias, k, n), mesh(), plan)
    x, g = activations(M, k), randn(M, n, seed=3)
    if not style.endswith("shards"):
        x.requires_grad_()
        results = step(module, x, g)
    else:
        from torch.distributed.tensor import distribute_tensor

        local = distribute_tensor(x, mesh(), [Shard(0)]).requires_grad_()
        results = step(module, local, distribute_tensor(g, mesh(), [Shard(0)]))
    return [whole(each) for each in results]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("style", ["columns", "columns of shards"])
def test_column_parallel(ranks, style, bias):
    config = Int8TileConfig(grad_split=False)
    y, grad_x, *grads = one_process(config, bias)
    for output, grad_input, *others in ranks(parallel, style, config, bias):
        same(output, y)
        close(grad_input, grad_x, TOLERANCE)
        assert not torch.equal(grad_input, grad_x), "each rank has scales of its own here"
        for other, grad in zip(others, grads, strict=True):
            same(other, grad)


def test_each_rank_of_columns_has_its_own_outlier_tokens(ranks):
    y, _, grad_w, grad_b = one_process()
    for output, _, grad_weight, grad_bias in ranks(parallel, "columns"):
        same(output, y)
        same(grad_bias, grad_b)
        close(grad_weight, grad_w, TOLERANCE)
        assert not torch.equal(grad_weight, grad_w)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("style", ["rows", "rows of shards"])
def test_row_parallel(ranks, style, bias):
    y, grad_x, *grads = one_process(bias=bias)
    for output, grad_input, grad_weight, *grad_bias in ranks(parallel, style, CONFIG, bias):
        same(grad_input, grad_x)
        for actual, expected in ((output, y), (grad_weight, grads[0])):
            close(actual, expected, TOLERANCE)
            assert not torch.equal(actual, expected), "each rank has scales of its own here"
        for actual, expected in zip(grad_bias, grads[1:], strict=True):
            same(actual, expected)


@pytest.mark.parametrize("style", ["columns", "rows"])
@pytest.mark.parametrize("config", [Int8TileConfig(granularity="tensor"), Int8TileConfig.paper()],
                         ids=["tensor", "paper"])  # fmt: skip
def test_one_scale_per_tensor_is_one_per_shard(ranks, config, style):
    expected = one_process(config)
    for results in ranks(parallel, style, config):
        for actual, wanted in zip(results, expected, strict=True):
            close(actual, wanted, 3 * TOLERANCE)


@pytest.mark.parametrize("style", ["columns", "rows", "rows of shards"])
def test_shards_may_be_uneven(ranks, style):
    sizes = {"k": 67, "n": 45}
    expected = one_process(**sizes)
    for results in ranks(parallel, style, CONFIG, True, *sizes.values()):
        for actual, wanted in zip(results, expected, strict=True):
            close(actual, wanted, TOLERANCE)


def data_parallel(rank):
    from torch.distributed.tensor import Shard, distribute_module, distribute_tensor

    module = distribute_module(layer(), mesh())
    x = distribute_tensor(activations(2, M, K), mesh(), [Shard(1)]).requires_grad_()
    g = distribute_tensor(randn(2, M, N, seed=3), mesh(), [Shard(1)])
    return [whole(each) for each in step(module, x, g)]


def test_replicated_weights_and_sharded_tokens(ranks):
    """Tokens have scales of their own, and both ranks the same outlier columns; the gradient of
    the weight has one scale per rank and column."""
    x = activations(2, M, K).requires_grad_()
    y, grad_x, grad_w, grad_b = step(layer(), x, randn(2, M, N, seed=3))
    for output, grad_input, grad_weight, grad_bias in ranks(data_parallel):
        same(output, y)
        same(grad_input, grad_x)
        close(grad_weight, grad_w, TOLERANCE)
        torch.testing.assert_close(grad_bias, grad_b)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.up, self.down = Int8Linear(K, N, config=config), Int8Linear(N, K, config=config)

    def forward(self, x):
        return x + self.down(nn.functional.gelu(self.up(x)))


def train(module, steps=12):
    """The losses of a regression on fixed data."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    x, target = activations(M, K, factor=8.0), randn(M, K, seed=4)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (module(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def trained_block(rank, config, backend=None):
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    torch.manual_seed(1)
    plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    module = parallelize_module(Block(config), mesh(), plan)
    state = {name: tuple(p.placements) for name, p in module.named_parameters()}
    return train(torch.compile(module, backend=backend) if backend else module), state


@pytest.mark.parametrize("config", [CONFIG, Int8TileConfig.paper()], ids=["row", "paper"])
def test_a_column_and_row_parallel_block_learns_like_one_process(ranks, config):
    from torch.distributed.tensor import Replicate, Shard

    torch.manual_seed(1)
    losses = train(Block(config))
    assert losses[-1] < 0.5 * losses[0]
    for parallel_losses, placements in ranks(trained_block, config):
        assert parallel_losses == pytest.approx(losses, rel=0.1)
        assert placements == {
            "up.weight": (Shard(0),), "up.bias": (Shard(0),),
            "down.weight": (Shard(1),), "down.bias": (Replicate(),),
        }  # fmt: skip


def test_a_compiled_block_learns_the_same(ranks):
    (losses, _), _ = ranks(trained_block, CONFIG)
    (compiled_losses, _), _ = ranks(trained_block, CONFIG, "aot_eager")
    assert compiled_losses == losses


def llama(rank):
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **sizes))
    int8tile.convert_(model)
    columns = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj",
               "mlp.up_proj")  # fmt: skip
    rows = ("self_attn.o_proj", "mlp.down_proj")
    ids = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(1))
    losses = [model(input_ids=ids, labels=ids).loss]
    plan = {f"model.layers.*.{name}": ColwiseParallel() for name in columns}
    plan |= {f"model.layers.*.{name}": RowwiseParallel() for name in rows}
    parallelize_module(model, mesh(), plan)
    losses.append(model(input_ids=ids, labels=ids).loss)
    losses[1].backward()
    norm = whole(model.model.layers[0].self_attn.q_proj.weight.grad).norm()
    return *(loss.item() for loss in losses), norm.item()


def test_a_language_model_says_the_same(ranks):
    for loss, parallel_loss, norm in ranks(llama):
        assert parallel_loss == pytest.approx(loss, rel=1e-3)
        assert parallel_loss != loss
        assert norm > 0


def frozen(rank):
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    from helpers import RecordOps

    module = layer().requires_grad_(False)
    parallelize_module(module, mesh(), ColwiseParallel())
    with RecordOps() as record, torch.no_grad():
        outputs = [module(activations(M, K)) for _ in range(3)]
        module.weight.mul_(2)
        outputs.append(module(activations(M, K)))
    return outputs, record.names


def test_a_frozen_shard_is_packed_once(ranks):
    for outputs, names in ranks(frozen):
        assert names.count("pack_weight") == 2
        same(outputs[2], outputs[0])
        assert not torch.equal(outputs[3], outputs[0])


def compiled(rank):
    from torch.distributed.tensor import Shard, distribute_tensor

    module = nn.Linear(K, N)
    module.load_state_dict(layer().state_dict())
    weight = distribute_tensor(module.weight.detach(), mesh(), [Shard(0)])
    x = distribute_tensor(activations(M, K), mesh())

    def run(x, weight):
        return torch.ops.int8tile.linear(x, weight)

    eager = run(x, weight)
    return whole(eager), whole(torch.compile(run, backend="aot_eager", fullgraph=True)(x, weight))


def test_the_op_itself_takes_dtensors_compiled_too(ranks):
    expected = torch.ops.int8tile.linear(activations(M, K), layer().weight)
    for eager, traced in ranks(compiled):
        same(eager, expected)
        same(traced, expected)


def refusals(rank):
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

    x, weight = activations(M, K), layer().weight.detach()
    shard = distribute_tensor(weight, mesh(), [Shard(0)])
    other = distribute_tensor(x, mesh(2, 1), [Replicate(), Replicate()])
    summed = DTensor.from_local(weight, mesh(), [Partial()])
    messages = []
    for arguments in ((x, shard), (other, shard), (distribute_tensor(x, mesh()), summed)):
        with pytest.raises(ValueError, match="int8tile::linear: ") as error:
            torch.ops.int8tile.linear(*arguments)
        messages.append(str(error.value))
    return messages


def test_mixtures_are_refused(ranks):
    for mixed, meshes, placement in ranks(refusals):
        assert "must all be DTensors or none; input is a plain tensor" in mixed
        assert "must be on one mesh; got [" in meshes
        assert "weight must be replicated or sharded over a mesh; got P" in placement


# Meshes of two dimensions.


def in_two_dimensions(rank, placements):
    from torch.distributed.tensor import distribute_tensor

    square = mesh(2, 2)
    names = ("input", "weight", "bias", "grad_output")
    module = layer()
    tensors = (activations(M, K), module.weight, module.bias, randn(M, N, seed=3))
    x, w, b, g = (
        distribute_tensor(each.detach(), square, place(placements[name]))
        for name, each in zip(names, tensors, strict=True)
    )
    for each in (x, w, b):
        each.requires_grad_()
    y = torch.ops.int8tile.linear(x, w, b)
    y.backward(g)
    return [whole(each.detach()) for each in (y, x.grad, w.grad, b.grad)]


def place(names):
    from torch.distributed.tensor import Replicate, Shard

    return [Replicate() if name == "R" else Shard(int(name)) for name in names]


@pytest.mark.slow
@pytest.mark.parametrize("weight", ["R0", "R1", "01", "10", "00", "11", "RR"])
@pytest.mark.parametrize("input", ["0R", "R1", "01", "00", "RR"])
def test_any_placement_on_a_mesh_of_two_dimensions(four_ranks, input, weight):
    expected = one_process()
    placements = {"input": input, "weight": weight, "grad_output": "0R"}
    placements["bias"] = weight.replace("1", "R")
    for results in four_ranks(in_two_dimensions, placements):
        for actual, wanted in zip(results, expected, strict=True):
            close(actual, wanted, 2 * TOLERANCE)


def fsdp_of_parallel(rank):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    torch.manual_seed(1)
    module = Block(CONFIG)
    parallelize_module(
        module, square["tensor"], {"up": ColwiseParallel(), "down": RowwiseParallel()}
    )
    fully_shard(module, mesh=square["data"])
    return train(module)


@pytest.mark.slow
def test_fsdp_of_a_parallel_block(four_ranks):
    torch.manual_seed(1)
    losses = train(Block(CONFIG))
    for parallel_losses in four_ranks(fsdp_of_parallel):
        assert parallel_losses == pytest.approx(losses, rel=0.1)
