"""Types of the C++ core. Addresses are integers; matrices are (address, dtype code, rows, cols,
row stride, column stride) with strides in elements."""

_Matrix = tuple[int, int, int, int, int, int]
# Addresses of the saved input, its limbs, its scales, the outlier index and the outlier count, the
# outlier capacity, and whether exponents of gains follow the index: [2, capacity].
_Saved = tuple[int, int, int, int, int, int, bool]

# Of the functions cuda_*, which only builds with the CUDA backend have: device index, stream and
# address of the workspace; addresses of the values, high limbs, low limbs (0: in place), saved
# values, saved high limbs, scales, outlier index, outlier count and gains (0: none), and the
# outlier capacity.
_Call = tuple[int, int, int]
_CudaInput = tuple[int, int, int, int, int, int, int, int, int, int]

__version__: str
cuda_compiled: bool
SLICE_DEPTH: int

class UnsupportedError(NotImplementedError): ...

class GemmPlan:
    @property
    def m(self) -> int: ...
    @property
    def n(self) -> int: ...
    @property
    def k(self) -> int: ...
    @property
    def capacity(self) -> int: ...
    @property
    def outlier_bits(self) -> int: ...
    @property
    def k_padded(self) -> int: ...
    @property
    def m_block(self) -> int: ...
    @property
    def n_block(self) -> int: ...
    @property
    def k_block(self) -> int: ...
    @property
    def tasks(self) -> int: ...
    @property
    def threads(self) -> int: ...
    @property
    def stream(self) -> bool: ...
    @property
    def accumulator_bound(self) -> int: ...
    @property
    def workspace_bytes(self) -> int: ...
    @property
    def slices(self) -> list[tuple[int, int]]: ...
    @property
    def isa(self) -> str: ...
    @property
    def tile(self) -> tuple[int, int]: ...
    @property
    def verdict(self) -> str: ...
    def why_float(self, frozen: bool) -> str: ...
    def text(self, with_verdict: bool = True) -> str: ...

class GemmBench:
    def __init__(
        self, m: int, n: int, k: int, outliers: int, threads: int, isa: str = ""
    ) -> None: ...
    def run(self) -> None: ...

def peak_gops(threads: int, isa: str = "", seconds: float = 0.01) -> float: ...
def tile_gops(k: int, threads: int, isa: str = "", seconds: float = 0.01) -> float: ...
def compiled_isas() -> list[str]: ...
def supported_isas() -> list[str]: ...
def default_isa() -> str: ...
def kernel_verdict(isa: str = "") -> str: ...
def cache_bytes() -> tuple[int, int]: ...
def panel_columns(isa: str = "") -> int: ...
def default_capacity(k: int) -> int: ...
def plan(
    m: int, n: int, k: int, capacity: int, outlier_bits: int, threads: int, isa: str = ""
) -> GemmPlan: ...
def linear_forward(
    input: _Matrix,
    weight: _Matrix,
    bias: _Matrix,
    packed: int,
    packed_scale: int,
    threshold: float,
    outlier_bits: int,
    capacity: int,
    granularity: str,
    scale: str,
    saved_regular: int,
    saved_high: int,
    input_scale: int,
    index: int,
    count: int,
    out: _Matrix,
    threads: int,
    isa: str = "",
    outlier_gain: bool = False,
    weight_absmax: int = 0,
) -> None: ...
def quantized_input_bytes(m: int, k: int, capacity: int) -> int: ...
def quantize_input(
    input: _Matrix,
    threshold: float,
    outlier_bits: int,
    capacity: int,
    granularity: str,
    scale: str,
    saved_regular: int,
    saved_high: int,
    block: int,
    input_scale: int,
    index: int,
    count: int,
    threads: int,
    isa: str = "",
) -> None: ...
def linear_multiply(
    block: int,
    input_scale: int,
    index: int,
    count: int,
    capacity: int,
    weight: _Matrix,
    bias: _Matrix,
    packed: int,
    packed_scale: int,
    granularity: str,
    scale: str,
    out: _Matrix,
    threads: int,
    isa: str = "",
) -> None: ...
def linear_grad_input(
    grad_output: _Matrix,
    weight: _Matrix,
    packed: int,
    packed_scale: int,
    granularity: str,
    scale: str,
    rounding: str,
    seed: int,
    out: _Matrix,
    threads: int,
    isa: str = "",
) -> None: ...
def linear_grad_weight(
    grad_output: _Matrix,
    saved: _Saved,
    granularity: str,
    scale: str,
    rounding: str,
    seed: int,
    out: _Matrix,
    grad_bias: int,
    threads: int,
    isa: str = "",
    split_tokens: bool = False,
) -> None: ...
def linear_backward(
    grad_output: _Matrix,
    weight: _Matrix,
    saved: _Saved,
    granularity: str,
    scale: str,
    rounding: str,
    seed: int,
    grad_input: _Matrix,
    grad_weight: _Matrix,
    grad_bias: int,
    threads: int,
    isa: str = "",
    split_tokens: bool = False,
) -> None: ...
def pack_weight(
    weight: _Matrix,
    granularity: str,
    scale: str,
    transposed: bool,
    panels: int,
    scales: int,
    threads: int,
    isa: str = "",
) -> None: ...
def quantize(
    input: _Matrix,
    fold: int,
    granularity: str,
    scale: str,
    rounding: str,
    seed: int,
    gemm_id: int,
    transposed: bool,
    q: int,
    scales: int,
    threads: int,
    isa: str = "",
) -> None: ...
def quantize_split(
    input: _Matrix,
    threshold: float,
    outlier_bits: int,
    capacity: int,
    granularity: str,
    scale: str,
    q: int,
    high: int,
    low: int,
    scales: int,
    index: int,
    count: int,
    threads: int,
    isa: str = "",
) -> None: ...
def gemm(
    a: int,
    m: int,
    k: int,
    b: int,
    n: int,
    a_high: int,
    b_high: int,
    high_columns: int,
    out: int,
    threads: int,
    isa: str = "",
) -> None: ...
def fingerprint(address: int, bytes: int, samples: int) -> int: ...
def cuda_device_count() -> int: ...
def cuda_unavailable() -> str: ...
def cuda_device(index: int) -> tuple[str, int, int, int]: ...
def cuda_quantize_workspace(rows: int, cols: int) -> int: ...
def cuda_multiply_workspace(m: int, n: int, k: int, capacity: int, packed: bool) -> int: ...
def cuda_grad_input_workspace(m: int, n: int, k: int, packed: bool) -> int: ...
def cuda_grad_weight_workspace(m: int, n: int, k: int, capacity: int, grad_split: bool) -> int: ...
def cuda_backward_workspace(m: int, n: int, k: int, capacity: int, grad_split: bool) -> int: ...
def cuda_quantize_input(
    call: _Call,
    input: _Matrix,
    threshold: float,
    outlier_bits: int,
    options: tuple[str, str],
    gains: tuple[_Matrix, int, bool] | None,
    to: _CudaInput,
) -> None: ...
def cuda_quantize(
    call: _Call,
    input: _Matrix,
    fold: int,
    transposed: bool,
    options: tuple[str, str, str, int],
    gemm_id: int,
    q: int,
    scale: int,
) -> None: ...
def cuda_refresh_weight(
    call: _Call,
    weight: _Matrix,
    transposed: bool,
    options: tuple[str, str],
    q: int,
    scale: int,
    mark: int,
) -> None: ...
def cuda_linear_multiply(
    call: _Call,
    m: int,
    input: _CudaInput,
    weight: _Matrix,
    packed: tuple[int, int],
    weight_absmax: int,
    options: tuple[str, str],
    bias: int,
    out: _Matrix,
) -> None: ...
def cuda_linear_grad_input(
    call: _Call,
    grad_output: _Matrix,
    weight: _Matrix,
    packed: tuple[int, int],
    options: tuple[str, str, str, int],
    out: _Matrix,
) -> None: ...
def cuda_linear_grad_weight(
    call: _Call,
    grad_output: _Matrix,
    input: _CudaInput,
    options: tuple[str, str, str, int],
    out: _Matrix,
    grad_bias: int,
    grad_split: bool,
) -> None: ...
def cuda_linear_backward(
    call: _Call,
    grad_output: _Matrix,
    weight: _Matrix,
    input: _CudaInput,
    options: tuple[str, str, str, int],
    grad_input: _Matrix,
    grad_weight: _Matrix,
    grad_bias: int,
    grad_split: bool,
) -> None: ...
def cuda_gemm(
    call: _Call,
    a: int,
    m: int,
    k: int,
    b: int,
    n: int,
    a_high: int,
    b_high: int,
    high_columns: int,
    high_count: int,
    out: int,
) -> None: ...
