"""The plan: a pure function of shapes and machine facts, its bound, its refusals and its print."""

import itertools
import re

import pytest
import torch

import int8tile
from int8tile import _core, reference

INT32_MAX = 2**31 - 1
REGULAR = 127 * 127
OUTLIER = 16384 * 127
FIELDS = [
    "m",
    "n",
    "k",
    "capacity",
    "outlier_bits",
    "k_padded",
    "m_block",
    "n_block",
    "k_block",
    "tasks",
    "threads",
    "stream",
    "accumulator_bound",
    "workspace_bytes",
    "slices",
    "isa",
    "tile",
    "verdict",
]
SHAPES = [
    (0, 5, 5),
    (1, 1, 1),
    (7, 0, 3),
    (3, 4, 0),
    (128, 768, 768),
    (4096, 768, 3072),
    (100, 3, 131072),
    (5, 5, 131073),
    (2, 2, 1_000_000),
]


def plan(m=8, n=16, k=48, capacity=None, bits=12, threads=1, isa=None):
    return int8tile.plan(m, n, k, capacity, bits, threads, isa)


def most_outliers(k):
    return max(0, (INT32_MAX - k * REGULAR) // OUTLIER)


def test_equal_arguments_give_equal_plans(isa):
    for shape in SHAPES:
        first, second = plan(*shape, isa=isa), plan(*shape, isa=isa)
        assert str(first) == str(second)
        assert all(getattr(first, f) == getattr(second, f) for f in FIELDS)


def test_a_plan_cannot_be_changed():
    for field in FIELDS:
        with pytest.raises(AttributeError):
            setattr(plan(), field, 1)


def test_threads_default_to_those_of_torch():
    assert int8tile.plan(4096, 4096, 64).threads == torch.get_num_threads()
    assert int8tile.plan(4096, 4096, 64, threads=1).threads == 1


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("threads", [1, 2, 64])
def test_blocks_cover_the_output_in_whole_tiles(isa, shape, threads):
    p = plan(*shape, threads=threads, isa=isa)
    m, n, k = shape
    rows, columns = p.tile
    assert (rows, columns) == (6, _core.panel_columns(isa))
    assert p.m_block % rows == p.n_block % columns == p.k_block % 16 == 0
    assert p.k_padded == -(-k // 16) * 16
    assert p.tasks == -(-m // p.m_block) * -(-n // p.n_block)
    assert p.threads == min(threads, max(p.tasks, 1))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_slices_cover_k_and_fit_int32(shape):
    p = plan(*shape)
    assert p.slices[0][0] == 0
    assert p.slices[-1][1] == shape[2]
    assert all(left[1] == right[0] for left, right in itertools.pairwise(p.slices))
    assert (len(p.slices) == 1) == (shape[2] <= _core.SLICE_DEPTH)
    assert all(end - begin <= _core.SLICE_DEPTH for begin, end in p.slices)
    sums = [(end - begin) * REGULAR for begin, end in p.slices]
    sums[0] += p.capacity * OUTLIER
    assert p.accumulator_bound == max(sums) <= INT32_MAX
    assert p.slices == reference.slices_of(shape[2], p.capacity)


@pytest.mark.parametrize(
    ("k", "capacity"),
    [(0, 0), (1, 1), (31, 31), (32, 32), (100, 32), (512, 32), (513, 64), (768, 64), (3072, 192)],
)
def test_default_capacity_is_a_sixteenth_of_k_rounded_up_to_32(k, capacity):
    assert plan(k=k).capacity == _core.default_capacity(k) == capacity


@pytest.mark.parametrize(
    ("k", "capacity"), [(14_336, 896), (14_337, 920), (65_536, 524), (131_071, 16), (131_072, 16)]
)
def test_default_capacity_is_lowered_near_the_limit(k, capacity):
    assert plan(k=k).capacity == capacity
    assert capacity <= most_outliers(k)


def test_default_capacity_never_exceeds_the_bound():
    for k in range(1, 400_000, 997):
        p = plan(k=k)
        assert p.capacity <= min(k, -(-k // 512) * 32)
        assert p.accumulator_bound <= INT32_MAX
        assert p.capacity > 0


@pytest.mark.parametrize("k", [16_384, 65_536, 100_000, 131_072])
def test_the_largest_capacity_fits_and_one_more_is_refused(k):
    most = most_outliers(k)
    assert k + 129.01 * most <= 133_144 < k + 129.02 * (most + 1)
    assert plan(k=k, capacity=most).accumulator_bound <= INT32_MAX
    message = (
        f"int8tile::plan: outlier_capacity must be at most {most} so that sums over {k} "
        f"features fit int32; got {most + 1}"
    )
    with pytest.raises(ValueError, match=message):
        plan(k=k, capacity=most + 1)


def test_beyond_one_slice_the_first_one_shrinks_for_the_panels():
    p = plan(k=200_000, capacity=1000)
    first = p.slices[0][1]
    assert first < 16_384
    assert first * REGULAR + 1000 * OUTLIER <= INT32_MAX
    assert len(p.slices) == 3
    most = most_outliers(16)
    assert plan(k=200_000, capacity=most).slices[0][1] >= 16
    with pytest.raises(ValueError, match=f"must be at most {most} .* 200000 .* got {most + 1}"):
        plan(k=200_000, capacity=most + 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"m": -1}, "m, n and k must not be negative; got -1, 16, 48"),
        ({"n": -1}, "m, n and k must not be negative; got 8, -1, 48"),
        ({"k": -1}, "m, n and k must not be negative; got 8, 16, -1"),
        ({"k": 2**30 + 1}, f"m, n and k must be at most {2**30}; got 8, 16, {2**30 + 1}"),
        ({"bits": 7}, "outlier_bits must be 8..15; got 7"),
        ({"bits": 16}, "outlier_bits must be 8..15; got 16"),
        ({"capacity": 49}, r"outlier_capacity must be 0..48 \(the input features\); got 49"),
        ({"capacity": -2}, r"outlier_capacity must be 0..48 \(the input features\); got -2"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_planned_is_refused(arguments, message):
    with pytest.raises(ValueError, match=f"^int8tile::plan: {message}$"):
        plan(**arguments)


def test_threads_must_be_positive():
    with pytest.raises(ValueError, match="int8tile: threads must be at least 1; got 0"):
        plan(threads=0)


def test_a_plan_prints_itself():
    p = plan(m=8, n=16, k=40, isa="portable")
    assert str(p).splitlines() == [
        "out[8, 16] = a[8, 40] @ b[16, 40].T",
        "  segments     high limbs <= 32 (shift 7) | low limbs in place | regular 48 (8 padding)",
        "  outliers     capacity 32 columns of INT12",
        "  kernel       portable, tile 6 x 16",
        "  blocks       m 12, n 16, k 48; 1 tasks on 1 threads",
        "  slices of k  1",
        "  accumulator  |acc| <= 67229736 = 2^31 * 0.0313063",
        f"  workspace    {p.workspace_bytes} bytes",
        f"  verdict      {p.verdict}",
    ]
    assert p.text() == str(p)
    assert p.text(with_verdict=False).splitlines() == str(p).splitlines()[:-1]


def test_a_plan_prints_no_split_and_slices():
    assert "  outliers     none" in str(plan(capacity=0))
    text = str(plan(k=300_000, bits=9))
    assert "| low limbs <= 524 | regular 300000 (0 padding)" in text
    assert "capacity 524 columns of INT9" in text
    assert "  slices of k  3" in text


def test_the_workspace_holds_the_packed_operands():
    p = plan(m=100, n=200, k=768)
    assert p.workspace_bytes >= (100 + 200) * 768
    assert plan(m=200, n=200, k=768).workspace_bytes > p.workspace_bytes


# --- Where float32 is expected to win

FLOAT_WINS = "float32 is expected to be as fast or faster"
INT8_WINS = "int8 is expected to be faster than float32"


@pytest.fixture
def dot_product():
    """The kernel with a dot-product instruction; the verdicts about shapes are its own."""
    if "avx512_vnni" not in _core.supported_isas():
        pytest.skip("this CPU lacks avx512_vnni")
    return "avx512_vnni"


@pytest.mark.parametrize("name", ["avx2", "portable"])
def test_a_kernel_without_a_dot_product_is_said_to_be_no_faster(name):
    if name not in _core.supported_isas():
        pytest.skip(f"this CPU lacks {name}")
    why = f"{FLOAT_WINS}: the {name} kernel has no int8 dot-product instruction"
    assert _core.kernel_verdict(name) == why
    assert {plan(*shape, isa=name).verdict for shape in SHAPES} == {why}


def test_a_kernel_with_a_dot_product_has_no_verdict_of_its_own(dot_product):
    assert _core.kernel_verdict(dot_product) == ""


@pytest.mark.parametrize(
    ("shape", "verdict"),
    [
        ((4096, 768, 768), INT8_WINS),
        ((64, 768, 768), INT8_WINS),
        ((32, 2048, 2048), INT8_WINS),
        ((31, 2048, 2048), f"{FLOAT_WINS} while the weight is trained: with fewer than 32 tokens"),
        ((16, 768, 768), f"{FLOAT_WINS} while the weight is trained: with fewer than 32 tokens"),
        ((1, 1024, 1024), f"{FLOAT_WINS} while the weight is trained: with fewer than 32 tokens"),
        ((48, 768, 768), f"{FLOAT_WINS} while the weight is trained: with so small a product"),
        ((128, 384, 384), f"{FLOAT_WINS} while the weight is trained: with so small a product"),
        ((32, 256, 256), f"{FLOAT_WINS}: the call's own overhead outweighs so small a product"),
        ((1, 768, 768), f"{FLOAT_WINS}: the call's own overhead outweighs so small a product"),
        ((0, 4096, 4096), f"{FLOAT_WINS}: the call's own overhead outweighs so small a product"),
        ((2**30, 2**12, 2**12), INT8_WINS),
    ],
    ids=str,
)
def test_the_verdict_names_its_reason(shape, verdict, dot_product):
    assert re.match(re.escape(verdict), plan(*shape, isa=dot_product).verdict)


def test_a_weight_of_one_kind_has_a_reason_of_its_own(dot_product):
    small, few, large = (
        plan(*s, isa=dot_product) for s in ((8, 64, 64), (16, 768, 768), (4096,) * 3)
    )
    assert small.why_float(True) == small.why_float(False) != ""
    assert few.why_float(False).startswith("with fewer than 32 tokens, quantizing the weight")
    assert few.why_float(True) == large.why_float(True) == large.why_float(False) == ""


def test_a_verdict_on_a_trained_weight_also_speaks_of_a_frozen_one(dot_product):
    text = plan(16, 768, 768, isa=dot_product).verdict
    assert text.endswith("; where it is frozen, int8 is expected to be faster")


def test_more_tokens_never_turn_the_verdict_back(dot_product):
    for n, k in [(64, 64), (384, 384), (768, 768), (768, 3072), (4096, 14336)]:
        verdicts = [plan(m, n, k, isa=dot_product).verdict for m in range(1, 20_000, 13)]
        changes = [text for text, _ in itertools.groupby(verdicts)]
        assert len(set(changes)) == len(changes) <= 4
        assert changes[-1] == INT8_WINS
