"""The recommendation: gamma, bits and what stays float, from planted layers and made-up numbers."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import int8tile
from helpers import randn
from int8tile import Int8TileConfig, _core, analysis
from int8tile.analysis import Report
from int8tile.analysis.results import ThresholdResult
from int8tile.config import config_for
from int8tile.nn import Int8Linear


@pytest.fixture(scope="module")
def measured():
    """One real layer of a size that int8 is worth while for, to change numbers of."""
    torch.manual_seed(0)
    model = nn.Linear(256, 256)
    with analysis.record(model, thresholds=(4.0, 8.0)) as recording:
        model(randn(256, 256).clamp(-2, 2)).sum().backward()
    (found,) = recording.report().layers.values()
    return replace(found, why_float="")


@pytest.fixture
def off(measured):
    """The same layer with grad_split off."""
    return replace(measured, config=replace(measured.config, grad_split=False))


def thresholds(*rows):
    """(threshold, columns, over, dB, dB with gains) of each."""
    return [ThresholdResult(t, mean, round(mean), over, *y) for t, mean, over, *y in rows]


FLAT = thresholds((None, 0, 0, 40.0), (4.0, 9, 0, 40.2), (5.0, 3, 0, 40.1), (8.0, 0, 0, 40.0))
OUTLIERS = thresholds((None, 0, 0, 25.0), (4.0, 9, 0, 40.2), (5.0, 3, 0, 40.1), (8.0, 1, 0, 30.0))


def cosines(grad_input=0.9999, plain=0.9999, split=0.9999, with_grad_split=None):
    """Cosines of the gradients; `with_grad_split` are (plain, split) where they differ."""
    found = {"grad_input": grad_input, "grad_weight_plain": plain, "grad_weight_split": split}
    names = [f"{name}_grad_split" for name in list(found)[1:]]
    return found | dict(zip(names, with_grad_split or (plain, split), strict=True))


def report(measured, **layers):
    """A report of layers, each given as what differs from the measured one."""
    usual = {"thresholds": FLAT, "bits_db": {12: 40.0, 15: 40.1}}
    made = {
        name.replace("_", "."): replace(measured, name=name.replace("_", "."), **usual | changes)
        for name, changes in layers.items()
    }
    return Report(made, [], {})


def test_the_fewest_columns_that_keep_the_output_decide(measured):
    advice = report(measured, a={"thresholds": OUTLIERS}, b={"thresholds": OUTLIERS}).recommendation
    assert advice.config == {"*": Int8TileConfig(threshold=5.0)}
    assert advice.reasons["*"] == (
        "gamma 5: suits 2 of 2 layers, 1.17% more multiplications; "
        "12 bits: more would gain 0.1 dB at most"
    )


def test_without_outliers_the_smallest_gamma_that_costs_nothing_stays(measured):
    assert report(measured, a={}).recommendation.config["*"].threshold == 8.0


def test_a_layer_that_the_common_gamma_does_not_suit_gets_its_own(measured):
    advice = report(measured, a={}, b={}, c={"thresholds": OUTLIERS}).recommendation
    # 4 and 5 suit all three layers, so no one is left out; at 5 there are fewer columns.
    assert advice.config == {"*": Int8TileConfig(threshold=5.0)}
    over = [replace(each, overflow_calls=each.threshold in (4.0, 5.0)) for each in OUTLIERS]
    advice = report(measured, a={"thresholds": over}, b={}, c={}, d={}).recommendation
    assert advice.config == {"*": Int8TileConfig(threshold=8.0)}
    few = thresholds((None, 0, 0, 25.0), (4.0, 9, 0, 40.0), (5.0, 3, 1, 40.0), (8.0, 1, 0, 30.0))
    tight = [replace(e, overflow_calls=int(e.threshold == 4.0)) for e in OUTLIERS]
    advice = report(measured, a={"thresholds": few}, b={"thresholds": tight}, c={}).recommendation
    assert advice.config["*"].threshold == 5.0
    assert advice.config["a"].threshold == 4.0
    assert advice.reasons["a"] == "gamma 4: at gamma 5 3 columns exceed the capacity"


def test_a_gamma_that_loses_the_output_is_named(measured):
    steep = thresholds((None, 0, 0, 25.0), (4.0, 9, 0, 45.0), (5.0, 3, 0, 40.0), (8.0, 1, 0, 30.0))
    tight = [replace(each, overflow_calls=int(each.threshold == 4.0)) for each in OUTLIERS]
    found = report(
        measured, a={"thresholds": steep}, b={"thresholds": tight}, c={"thresholds": tight}
    )
    assert found.recommendation.reasons["a"] == (
        "gamma 4: the output has 45.0 dB instead of 40.0 at gamma 5"
    )
    assert found.recommend(tolerance_db=6.0).config == {"*": Int8TileConfig(threshold=5.0)}


def test_more_bits_where_they_gain(measured):
    gains = {"bits_db": {8: 30.0, 12: 38.0, 14: 40.0, 15: 40.2}}
    advice = report(measured, a=gains, b={}).recommendation
    assert advice.config["*"].outlier_bits == 14
    assert "14 bits: gain 2.0 dB over 12 in one layer" in advice.reasons["*"]
    assert report(measured, a=gains).recommend(bits_gain_db=3.0).config["*"].outlier_bits == 12


def test_gains_where_they_gain(measured):
    gained = thresholds((None, 0, 0, 25.0, 25.0), (4.0, 9, 0, 40.0, 60.0), (5.0, 3, 0, 40.0, 48.5))
    found = report(measured, a={"thresholds": OUTLIERS}, b={"thresholds": gained})
    assert found.recommendation.config == {"*": Int8TileConfig(threshold=4.0, outlier_gain=True)}
    assert found.recommendation.reasons["*"].endswith("; outlier_gain: gains 20.0 dB in b")
    assert found.recommend(outlier_gain_db=21.0).config == {"*": Int8TileConfig(threshold=5.0)}


def test_gamma_is_chosen_with_the_gains(measured):
    """Without gains all gammas are alike, so that the largest is the cheapest."""
    alike = thresholds((None, 0, 0, 25.0, 25.0), (4.0, 9, 0, 30.2, 37.0), (8.0, 5, 0, 30.0, 34.0))
    advice = report(measured, a={"thresholds": alike}).recommendation
    assert advice.config == {"*": Int8TileConfig(threshold=4.0, outlier_gain=True)}
    assert advice.reasons["*"].endswith("; outlier_gain: gains 7.0 dB in a")
    without = report(measured, a={"thresholds": alike}).recommend(outlier_gain_db=9.0)
    assert without.config == {"*": Int8TileConfig(threshold=8.0)}


def test_gains_are_asked_for_where_no_split_wins_without_them(measured):
    many = thresholds((None, 0, 0, 19.2, 19.2), (5.0, 48, 0, 19.8, 26.0))
    advice = report(measured, a={"thresholds": many}).recommendation
    assert advice.config == {"*": Int8TileConfig(threshold=5.0, outlier_gain=True)}
    barely = thresholds((None, 0, 0, 18.0, 18.0), (5.0, 3, 0, 18.5, 20.9))
    advice = report(measured, a={"thresholds": barely}, b={}).recommendation
    assert advice.config["*"].outlier_gain
    assert advice.reasons["*"].endswith("; outlier_gain: gains 2.4 dB in a")


def test_the_tolerance_gives_no_layer_away(measured):
    near = thresholds((None, 0, 0, 15.0), (5.0, 9, 0, 20.4), (8.0, 3, 0, 19.6))
    assert report(measured, a={"thresholds": near}).recommendation.config["*"].threshold == 5.0


def test_bits_do_not_depend_on_the_order_of_layers(measured):
    ten = replace(measured.config, outlier_bits=10)
    odd = {"config": ten, "bits_db": {10: 40.0, 15: 40.0}}
    for layers in ({"a": odd, "b": {}, "c": {}}, {"b": {}, "a": odd, "c": {}}):
        assert report(measured, **layers).recommendation.config["*"].outlier_bits == 12
    little = {"bits_db": {12: 40.0, 14: 40.2, 15: 40.6}}
    assert report(measured, a=little).recommendation.config["*"].outlier_bits == 15


def test_gains_that_were_configured_stay_and_are_told(measured):
    on = replace(measured.config, outlier_gain=True)
    same = thresholds((None, 0, 0, 25.0, 25.0), (5.0, 9, 0, 30.0, 30.5))
    advice = report(measured, a={"thresholds": same, "config": on}).recommendation
    assert advice.config["*"].outlier_gain
    assert advice.reasons["*"].endswith("; outlier_gain as configured: gains 0.5 dB at most")


def test_a_capacity_too_small_is_named(measured):
    over = thresholds((None, 0, 0, 34.0), (5.0, 40, 9, 35.0), (8.0, 33, 9, 34.5))
    full = {"thresholds": over, "overflow_calls": 9, "most_columns": 40}
    advice = report(measured, a=full, b={"thresholds": over[:1]}).recommendation
    assert advice.config["*"].threshold is None
    assert advice.reasons["*"].endswith(
        f"; up to 40 outlier columns at gamma 5 exceed the capacity of {measured.capacity} in a: "
        "a config with outlier_capacity=64 is worth a measurement"
    )


def test_a_layer_that_gains_lift_above_the_limit_is_int8(measured):
    gained = {"thresholds": thresholds((None, 0, 0, 8.0, 8.0), (5.0, 3, 0, 15.0, 21.0))}
    assert report(measured, a=gained).recommendation.config["*"].outlier_gain
    assert report(measured, a=gained).recommend(outlier_gain_db=7.0).config["*"].outlier_gain
    assert report(measured, a=gained).recommend(min_db=22.0).config["a"] is None


def test_a_layer_below_the_limit_stays_float(measured):
    noisy = [replace(each, y_db=12.0) for each in FLAT]
    advice = report(measured, a={"thresholds": noisy}, b={}, c={}).recommendation
    assert advice.config["a"] is None
    assert advice.reasons["a"] == "float: the output has at most 12.0 dB, below 20"
    assert report(measured, a={"thresholds": noisy}).recommend(min_db=10.0).config["*"] is not None


def test_a_layer_too_small_for_int8_stays_float(measured):
    small = {"why_float": "too small"}
    advice = report(measured, a=small, b={}).recommendation
    if _core.kernel_verdict():  # no layer is faster here: not a reason against this one
        assert "a" not in advice.config
    else:
        assert advice.config["a"] is None
        assert advice.reasons["a"] == "float: too small (256 tokens a call)"


def test_layers_that_stay_float_choose_nothing_for_the_others(measured):
    """Without them gamma 8 suits all, and nothing gains."""
    eager = thresholds((None, 0, 0, 25.0, 25.0), (4.0, 9, 0, 40.0, 60.0), (8.0, 1, 0, 30.0, 30.0))
    wants = {"thresholds": eager, "bits_db": {12: 40.0, 15: 50.0}}
    found = report(measured, a=wants, b=wants, c={})
    assert found.recommendation.config["*"].outlier_gain
    assert found.recommendation.config["*"].outlier_bits == 15
    noisy = [replace(each, y_db=8.0, y_gain_db=12.0) for each in eager]
    found = report(measured, a=wants | {"thresholds": noisy}, b={}, c={})
    assert found.recommendation.config == {"a": None, "*": Int8TileConfig(threshold=8.0)}
    assert "suits 2 of 2 layers" in found.recommendation.reasons["*"]


def test_the_reason_against_a_frozen_weight_is_not_that_against_a_trained_one():
    torch.manual_seed(0)
    trained, frozen = (nn.Linear(384, 384).requires_grad_(grad) for grad in (True, False))
    with analysis.record(nn.ModuleDict({"trained": trained, "frozen": frozen})) as recording:
        for module in (trained, frozen):
            module(randn(100, 384))
    layers = recording.report().layers
    assert layers["frozen"].frozen > layers["trained"].frozen
    plan = int8tile.plan(100, 384, 384)
    assert layers["trained"].why_float == plan.why_float(False)
    assert layers["frozen"].why_float == plan.why_float(True)
    if not _core.kernel_verdict():
        assert layers["trained"].why_float > layers["frozen"].why_float == ""


def test_gradients_below_the_limit_are_computed_in_float(measured):
    poor = cosines(0.9, plain=0.99)
    advice = report(measured, a={"cosine": poor}, b={}, c={}).recommendation
    assert advice.config["a"] == replace(advice.config["*"], grad_input=False)
    assert advice.reasons["a"] == "grad_input in float: cosine 0.9000 is 6.3 dB, below 20"
    poor = dict.fromkeys(poor, 0.5)
    assert not report(measured, a={"cosine": poor}, b={}).recommendation.config["a"].grad_weight


def test_no_split_needs_a_gradient_that_does_without(measured):
    """FLAT outputs want no split; what the gradient of the weight says is that of no split."""
    poor = cosines(plain=0.9)
    flat = [replace(each, y_db=40.0) for each in FLAT]
    layer = {"thresholds": flat, "cosine": poor}
    assert report(measured, a=layer).recommendation.config["*"].threshold == 5.0
    advice = report(measured, a={**layer, "thresholds": flat[:1]}).recommendation
    assert advice.config["a"] == replace(advice.config["*"], grad_weight=False)
    assert "cosine 0.9000" in str(advice)


def test_grad_split_where_it_lifts_the_gradient_of_a_weight(off):
    layer = {"cosine": cosines(plain=0.9, split=0.9, with_grad_split=(0.999, 0.999))}
    advice = report(off, a=layer, b={}, c={}).recommendation
    assert advice.config["a"] == replace(advice.config["*"], grad_split=True)
    assert advice.config["a"].grad_weight
    assert not advice.config["*"].grad_split
    assert advice.reasons["a"] == (
        "grad_split: the cosine of grad_weight is 0.9990 instead of 0.9000"
    )
    most = report(off, a=layer, b=layer, c={}).recommendation
    assert most.config == {"*": replace(advice.config["*"], grad_split=True)}
    assert most.reasons["*"].endswith(
        "; grad_split: lifts the gradient of 2 of 3 weights above 20 dB"
    )


def test_grad_split_that_does_not_suffice_is_not_asked_for(off):
    layer = {"cosine": cosines(plain=0.9, split=0.9, with_grad_split=(0.97, 0.97))}
    advice = report(off, a=layer, b={}).recommendation
    assert advice.config["a"] == replace(advice.config["*"], grad_weight=False)
    assert not advice.config["a"].grad_split
    unknown = {"cosine": layer["cosine"] | dict.fromkeys(list(layer["cosine"])[3:])}
    assert report(off, a=unknown, b={}).recommendation.config["a"] == advice.config["a"]


def test_grad_split_that_was_configured_stays(measured, off):
    layer = {"config": measured.config}
    advice = report(off, a=layer, b=layer, c={}).recommendation
    assert advice.config == {"*": Int8TileConfig(threshold=8.0)}
    assert "grad_split" not in str(advice)
    needs = {"cosine": cosines(plain=0.9, split=0.9, with_grad_split=(0.999, 0.999))}
    advice = report(measured, a=needs, b={}, c={}).recommendation
    assert advice.config == {"*": Int8TileConfig(threshold=8.0)}
    assert "grad_split: lifts the gradient of 1 of 3 weights above 20 dB" in str(advice)
    advice = report(off, a=layer, b={}, c={}).recommendation
    assert not advice.config["*"].grad_split
    assert advice.config["a"].grad_split
    assert advice.reasons["a"] == "keeps its own options"


def test_what_grad_split_was_recommended_for_keeps_it(off):
    """A second recording, of what the first one's advice made, gives the same advice."""
    needs = {"cosine": cosines(plain=0.9, split=0.9, with_grad_split=(0.999, 0.999))}
    first = report(off, a=needs, b={}, c={}).recommendation
    layers = {"a": needs, "b": {}, "c": {}}
    again = {
        name: {**each, "config": config_for(name, first.config)} for name, each in layers.items()
    }
    assert report(off, **again).recommendation.config == first.config


def test_grad_split_where_a_split_would_do_is_not_asked_for(off):
    flat = [replace(each, y_db=40.0) for each in FLAT]
    either = cosines(plain=0.9, split=0.9996, with_grad_split=(0.9999, 0.9999))
    advice = report(off, a={"thresholds": flat, "cosine": either}).recommendation
    assert (advice.config["*"].threshold, advice.config["*"].grad_split) == (5.0, False)


def test_the_gradient_is_that_of_the_chosen_gamma(measured):
    """At a gamma without an outlier column it is that of no split, whatever gamma is."""
    rows = thresholds((8.0, 0, 0, 40.0))
    poor = cosines(plain=0.9, split=0.9999)
    advice = report(measured, a={"thresholds": rows, "cosine": poor}, b={}).recommendation
    assert not advice.config["a"].grad_weight
    close = cosines(plain=0.9948, split=0.9952)  # 19.8 and 20.1 dB
    flat = [replace(each, y_db=40.0) for each in FLAT]
    advice = report(measured, a={"thresholds": flat, "cosine": close}).recommendation
    assert advice.config["*"] == Int8TileConfig(threshold=5.0)


def test_grad_split_is_not_for_a_gradient_in_float(measured):
    needs = cosines(plain=0.9, split=0.9, with_grad_split=(0.999, 0.999))
    layer = {"config": replace(measured.config, grad_weight=False), "cosine": needs}
    advice = report(measured, a=layer, b=layer).recommendation
    assert advice.config == {"*": Int8TileConfig(threshold=8.0, grad_weight=False)}
    assert "grad_split" not in str(advice)


def test_without_a_gradient_nothing_is_said_of_it(measured):
    unknown = {"cosine": dict.fromkeys(cosines())}
    advice = report(measured, a=unknown, b=unknown).recommendation
    assert advice.config == {"*": Int8TileConfig(threshold=8.0)}
    assert "grad_split" not in str(advice)


def test_the_split_stays_where_the_gradient_needs_it_with_grad_split(measured):
    """Without grad_split the tokens' noise hides what the input's outliers cost."""
    needs = cosines(plain=0.9, split=0.9, with_grad_split=(0.97, 0.9999))
    flat = [replace(each, y_db=40.0) for each in FLAT]
    advice = report(measured, a={"thresholds": flat, "cosine": needs}).recommendation
    assert (advice.config["*"].threshold, advice.config["*"].grad_split) == (5.0, True)


def test_a_layers_own_options_are_its_own(measured):
    odd = replace(measured.config, granularity="tensor", grad_input=False)
    advice = report(measured, odd={"config": odd}, b={}, c={}).recommendation
    assert advice.config["*"] == replace(measured.config, threshold=8.0)
    assert advice.config["odd"] == replace(odd, threshold=8.0)
    assert advice.reasons["odd"] == "keeps its own options"


def test_every_layer_gets_its_own_config_from_the_mapping(measured):
    """A name is also a pattern, for the names that end in it."""
    noisy = {"thresholds": [replace(each, y_db=12.0) for each in FLAT]}
    found = report(measured, head=noisy, block_head={}, block_mlp_head={}, block_mlp=noisy, z={})
    config = found.recommendation.config
    assert list(config)[-1] == "*"
    in_float = {name: config_for(name, config) is None for name in found.layers}
    assert in_float == {
        "head": True, "block.head": False, "block.mlp.head": False, "block.mlp": True, "z": False
    }  # fmt: skip


def test_layers_of_one_kind_are_one_pattern(measured):
    noisy = {"thresholds": [replace(each, y_db=12.0) for each in FLAT]}
    blocks = {f"h_{i}_{name}": noisy for i in range(12) for name in ("q", "k")}
    found = report(measured, **blocks, **{f"h_{i}_v": {} for i in range(12)}, head=noisy, tail={})
    advice = found.recommendation
    assert list(advice.config) == ["h.*.q", "h.*.k", "head", "*"]
    for name in found.layers:
        noisy_one = name == "head" or name.endswith(("q", "k"))
        assert (config_for(name, advice.config) is None) == noisy_one
    assert [names for names, _ in advice.grouped()] == ["all others", "h.*.q, h.*.k, head"]


def test_a_kind_whose_name_ends_in_another_is_one_pattern_too(measured):
    noisy = {"thresholds": [replace(each, y_db=12.0) for each in FLAT]}
    found = report(
        measured,
        **{f"h_{i}_output_dense": noisy for i in range(3)},
        **{f"h_{i}_attention_output_dense": {} for i in range(3)},
    )
    config = found.recommendation.config
    assert list(config) == ["h.*.attention.output.dense", "h.*.output.dense", "*"]
    for name in found.layers:
        assert (config_for(name, config) is None) == ("attention" not in name)
    assert [names for names, _ in found.recommendation.grouped()] == [
        "all others", "h.*.output.dense"
    ]  # fmt: skip


def test_a_capacity_is_that_of_the_layer_that_needs_it(measured):
    over = thresholds((None, 0, 0, 34.0))
    wide = {"thresholds": over, "overflow_calls": 9, "most_columns": 300, "in_features": 3072}
    narrow = {"thresholds": over, "overflow_calls": 9, "most_columns": 50}
    advice = report(measured, a=wide, b=narrow).recommendation
    assert "outlier_capacity=320 for 3072 input features is worth" in advice.reasons["*"]


def test_without_a_layer_in_int8_the_choice_is_said_to_be_nobodys(measured):
    noisy = {"thresholds": [replace(each, y_db=12.0) for each in FLAT]}
    assert report(measured, a=noisy).recommendation.reasons["*"].startswith("no layer is left")


def test_a_pattern_stands_for_no_layer_of_another_config(measured):
    noisy = {"thresholds": [replace(each, y_db=12.0) for each in FLAT]}
    found = report(measured, h_0_q=noisy, h_1_q=noisy, h_2_q={}, x={}, y={})
    assert list(found.recommendation.config) == ["h.0.q", "h.1.q", "*"]
    unseen = replace(report(measured, h_0_q=noisy, h_1_q=noisy, x={}, y={}), unseen=["h.2.q"])
    assert list(unseen.recommendation.config) == ["h.0.q", "h.1.q", "*"]


def test_names_with_pattern_characters_are_taken_literally(measured):
    noisy = [replace(each, y_db=12.0) for each in FLAT]
    layers = {
        "x[1]": replace(measured, name="x[1]", thresholds=noisy),
        "x1": replace(measured, name="x1", thresholds=FLAT),
    }
    config = Report(layers, [], {}).recommendation.config
    assert config_for("x[1]", config) is None
    assert config_for("x1", config) is not None


def test_convert_takes_it_and_so_does_python():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 2))
    with analysis.record(model) as recording:
        model(randn(300, 256)).sum().backward()
    advice = recording.report().recommendation
    converted = int8tile.convert_(model, advice.config).converted
    assert ("1" in converted) == (advice.config.get("1", 0) is not None)
    other = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 2))
    exec(advice.code(), {"int8tile": int8tile, "model": other})
    kinds = [type(module) for module in model]
    assert [type(module) for module in other] == kinds
    for ours, theirs in zip(model, other, strict=True):
        if isinstance(ours, Int8Linear):
            assert ours.config == theirs.config


def test_it_is_json_and_text(measured):
    noisy = {"thresholds": [replace(each, y_db=12.0) for each in FLAT]}
    advice = report(measured, a=noisy, b={}, c={}).recommendation
    content = json.loads(json.dumps(advice.to_json(), allow_nan=False))
    assert content["config"]["a"] is None
    assert Int8TileConfig(**content["config"]["*"]) == advice.config["*"]
    assert content["reasons"] == advice.reasons
    assert content["text"] == str(advice)
    assert content["text"].splitlines() == [
        f"all others: {advice.reasons['*']}", f"a: {advice.reasons['a']}"
    ]  # fmt: skip


def test_layers_with_one_reason_are_told_together(measured):
    noisy = {"thresholds": [replace(each, y_db=12.0) for each in FLAT]}
    advice = report(measured, a=noisy, b={}, c=noisy, d={}, e={}).recommendation
    names = [names for names, _ in advice.grouped()]
    assert names == ["all others", "a, c"]


def test_a_report_of_nothing_has_no_recommendation():
    with pytest.raises(ValueError, match="must have a layer that was called; 1 were watched"):
        _ = Report({}, ["a"], {}).recommendation
