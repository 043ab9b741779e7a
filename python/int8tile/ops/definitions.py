"""The schemas of the ops in torch.ops.int8tile."""

import torch

LIBRARY = torch.library.Library("int8tile", "DEF")

_SPLIT = "float? threshold=5.0, int outlier_bits=12, int? outlier_capacity=None"
_SCALE = 'str granularity="row", str scale="absmax"'
_GRAD = 'str rounding="nearest", Tensor? seed=None'
_SAVED = (
    "Tensor saved_input, Tensor saved_limbs, Tensor input_scale, Tensor outlier_index, "
    "Tensor outlier_count"
)
_PACKED = "Tensor? packed_weight=None, Tensor? weight_scale=None"
_GAIN = "bool outlier_gain=False"
_GRAD_SPLIT = "bool grad_split=True"

for _schema in (
    f"linear(Tensor input, Tensor weight, Tensor? bias=None, {_SPLIT}, {_SCALE}, "
    f'str grad_rounding="nearest", {_GAIN}, {_GRAD_SPLIT}) -> Tensor',
    f"linear_switched(Tensor input, Tensor weight, Tensor? bias, {_SPLIT}, {_SCALE}, "
    'str grad_rounding="nearest", bool forward=True, bool grad_input=True, '
    f"bool grad_weight=True, {_GAIN}, {_GRAD_SPLIT}) -> Tensor",
    f"linear_forward(Tensor input, Tensor weight, Tensor? bias=None, {_SPLIT}, {_SCALE}, "
    f"ScalarType? out_dtype=None, {_PACKED}, {_GAIN}, Tensor? weight_absmax=None) "
    f"-> (Tensor output, {_SAVED})",
    f"linear_forward_only(Tensor input, Tensor weight, Tensor? bias=None, {_SPLIT}, {_SCALE}, "
    f"ScalarType? out_dtype=None, {_PACKED}, {_GAIN}, Tensor? weight_absmax=None) -> Tensor",
    f"quantize_input(Tensor input, {_SPLIT}, {_SCALE}, bool save=True) -> (Tensor block, {_SAVED})",
    "linear_multiply(Tensor block, Tensor input_scale, Tensor outlier_index, "
    f"Tensor outlier_count, Tensor weight, Tensor? bias=None, {_SCALE}, "
    f"ScalarType? out_dtype=None, {_PACKED}) -> Tensor",
    f"linear_grad_input(Tensor grad_output, Tensor weight, {_SCALE}, {_GRAD}, "
    f"ScalarType? out_dtype=None, {_PACKED}) -> Tensor",
    f"linear_grad_weight(Tensor grad_output, {_SAVED}, int in_features, {_SCALE}, {_GRAD}, "
    f"ScalarType? out_dtype=None, bool with_bias=True, {_GRAD_SPLIT}) "
    "-> (Tensor grad_weight, Tensor grad_bias)",
    f"linear_backward(Tensor grad_output, Tensor weight, {_SAVED}, {_SCALE}, {_GRAD}, "
    f"ScalarType? out_dtype=None, bool with_bias=True, {_GRAD_SPLIT}) "
    "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)",
    f"pack_weight(Tensor weight, {_SCALE}, bool transpose=False) -> (Tensor packed, Tensor scale)",
    f"quantize(Tensor input, Tensor? fold=None, {_SCALE}, {_GRAD}, bool transpose=False) "
    "-> (Tensor q, Tensor scale)",
    f"quantize_split(Tensor input, {_SPLIT}, {_SCALE}) -> (Tensor q, Tensor high, Tensor low, "
    "Tensor scale, Tensor outlier_index, Tensor outlier_count)",
    "gemm(Tensor a, Tensor b, Tensor? a_high=None, Tensor? b_high=None) -> Tensor",
):
    LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))
