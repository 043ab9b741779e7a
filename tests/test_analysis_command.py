"""`int8tile analyze` on the packaged model: table, report.json, report.html, errors."""

import json
import re
from html.parser import HTMLParser

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("transformers", reason="needs the demo extra")
pytest.importorskip("matplotlib", reason="needs the demo extra")

import int8tile
from int8tile import Int8TileConfig, analysis
from int8tile.analysis import page
from int8tile.analysis.table import MOST_ROWS, TEXT_WIDTH, WIDE, shared_prefix, table
from int8tile.cli import app
from int8tile.finetune.stress import COLUMNS, outlier_columns

OPTIONS = (
    *(
        "--model",
        "--task",
        "--data",
        "--text-columns",
        "--label-column",
        "--regression",
        "--max-length",
        "--doc-stride",
        "--steps",
        "--every",
        "--gamma",
    ),
    *("--outlier-bits", "--stress", "--batch-size", "--lr", "--seed", "--threads", "--output"),
)
STRESS = 20


def call(*arguments, columns=200):
    env = {"COLUMNS": str(columns), "NO_COLOR": "1"}
    return CliRunner().invoke(app, ["analyze", *map(str, arguments)], env=env)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two stressed steps: what it printed, report.json and report.html."""
    folder = tmp_path_factory.mktemp("analyze") / "out"
    done = call(
        *("--steps", 2, "--batch-size", 4, "--max-length", 32, "--threads", 1),
        *("--stress", STRESS, "--gamma", 6, "--outlier-bits", 11, "--output", folder),
    )
    assert done.exit_code == 0, done.output
    assert sorted(each.name for each in folder.iterdir()) == ["report.html", "report.json"]
    return done.output, json.loads((folder / "report.json").read_text()), folder / "report.html"


def test_help_names_every_option():
    words = call("--help").output
    assert all(option in words for option in OPTIONS)
    assert "report.html" in words


def test_the_table_has_the_worst_layers_first(run):
    output, content, _ = run
    assert re.search(r"38 linear layers at gamma 6, \d+ tokens a call, the worst first", output)
    names = [name.removeprefix("bert.encoder.layer.") for name in content["layers"]]
    places = [re.search(rf"^ +{re.escape(name)} +\d", output, re.MULTILINE) for name in names]
    assert [place.start() for place in places] == sorted(place.start() for place in places)
    assert "recommended" in output
    assert "report.json, report.html" in output


def test_the_planted_columns_are_in_the_report(run):
    _, content, _ = run
    checked = 0
    for name, layer in content["layers"].items():
        if "encoder" in name:
            found = [column["index"] for column in layer["columns"] if column["share"] == 1]
            assert set(outlier_columns(layer["in_features"])) & set(found), name
            assert layer["most_columns"] >= len(found)
            checked += 1
    assert checked == 36
    assert COLUMNS == 4


def test_the_report_is_json_of_a_known_shape(run):
    _, content, _ = run
    assert list(content) == ["schema", "facts", "recommendation", "layers", "unseen", "skipped"]
    assert content["schema"] == 3
    facts = content["facts"]
    assert (facts["threshold"], facts["outlier_bits"], facts["stress"]) == (6, 11, STRESS)
    assert facts["max_steps"] == 2
    assert facts["int8tile"] == int8tile.__version__
    assert len(content["layers"]) == 38
    for name, layer in content["layers"].items():
        assert layer["name"] == name
        assert (layer["calls"], layer["measured_calls"], layer["measured_gradients"]) == (2, 2, 2)
        assert set(layer["snr_db"]) == {
            "x_plain", "x_split", "weight", "gradient", "y_plain", "y_split", "y_gain"
        }  # fmt: skip
        assert all(5 < db < 100 for db in layer["snr_db"].values())
        assert set(layer["cosine"]) == {
            "grad_input", "grad_weight_plain", "grad_weight_split",
            "grad_weight_plain_grad_split", "grad_weight_split_grad_split",
        }  # fmt: skip
        assert all(0.5 < value <= 1 for value in layer["cosine"].values())
        assert [each["threshold"] for each in layer["thresholds"]][:3] == [None, 3.0, 4.0]
        assert list(layer["bits_db"]) == ["8", "10", "11", "12", "14", "15"]
        assert layer["variance"]["within"] <= layer["variance"]["total"] * (1 + 1e-9)
        for arm in layer["distortion"].values():
            assert 0 <= arm["hcr_bound"] <= arm["binned_variance"] * (1 + 1e-9)
            assert arm["chi_square"] >= 0 <= arm["sensitivity"]
        assert 0 <= layer["clipped"] < 0.01
        assert Int8TileConfig(**layer["config"]) == Int8TileConfig(threshold=6.0, outlier_bits=11)
        assert "absmax" not in layer
    configs = content["recommendation"]["config"]
    assert list(configs)[-1] == "*"
    for config in configs.values():
        assert config is None or Int8TileConfig(**config)


def test_the_split_gains_where_outliers_were_planted(run):
    _, content, _ = run
    gains = [
        layer["snr_db"]["y_split"] - layer["snr_db"]["y_plain"]
        for name, layer in content["layers"].items()
        if "encoder" in name
    ]
    assert sum(gains) / len(gains) > 5


class Page(HTMLParser):
    """Tags, texts, sources and whether all tags are closed."""

    VOID = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.links, self.texts = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag == "img":
            self.images.append(attributes)
        self.links += [attributes[name] for name in ("href", "src") if name in attributes]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_has_every_layer_and_figure_and_needs_no_network(run):
    _, content, file = run
    text = file.read_text()
    shown = Page(text)
    assert shown.open == []
    assert all(name in shown.texts for name in content["layers"])
    titles = [image["alt"] for image in shown.images]
    assert titles[:2] == [
        "Outputs and gradients, layer by layer",
        "What each gamma gives and costs",
    ]
    assert [title for title in titles if "384 inputs" in title or "1536 inputs" in title] == [
        "Largest |x| of each input feature: layers with 384 inputs",
        "Largest |x| of each input feature: layers with 1536 inputs",
    ]
    assert titles[-1] == "Activations of the 9 worst layers"
    assert "Gradients" in shown.texts
    assert all(link.startswith("data:image/") for link in shown.links)
    assert not re.search(r"(?:src|href|url|@import)\W{1,3}https?:", text)
    assert len(text) < 4e6
    assert "int8tile.convert_(model, {" in text


def test_two_runs_write_the_same_report(tmp_path):
    pages = []
    for name in ("a", "b"):
        done = call("--steps", 1, "--batch-size", 2, "--max-length", 8, "--output", tmp_path / name)
        assert done.exit_code == 0, done.output
        content = json.loads((tmp_path / name / "report.json").read_text())
        del content["facts"]
        pages.append(content)
    assert pages[0] == pages[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--steps", 0), "int8tile analyze: --steps must be at least 1; got 0"),
        (("--gamma", -1), "int8tile analyze: --gamma must be above 0 and finite; got -1.0"),
        (("--every", 0), "int8tile analyze: --every must be at least 1; got 0"),
        (("--task", "imdb"), "int8tile analyze: --task must be one of"),
        (("--model", "/no/such/folder"), "int8tile analyze: --model must be a directory"),
        (("--doc-stride", 8), "int8tile analyze: --doc-stride must be left out unless the task is"),
        (
            ("--regression",),
            "int8tile analyze: --regression must be left out unless the task is cu",
        ),
        (("--max-length", 9999), "int8tile analyze: --max-length must be at most 512"),
        (("--data", "/no/such/folder", "--task", "sst2"), "int8tile analyze: --data needs the"),
        (("--output", "/dev/null"), "int8tile analyze: --output must be a folder"),
    ],
)
def test_errors_are_one_line(arguments, message, tmp_path):
    done = call("--output", tmp_path / "out", *arguments)
    assert done.exit_code == 2
    assert done.output.startswith(f"error: {message}")
    assert done.output.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_every_task_of_finetune_can_be_analyzed(tmp_path):
    for name in ("train", "dev"):
        rows = "".join(f"a film of {i},{'good' if i % 2 else 'bad'}\n" for i in range(8))
        (tmp_path / f"{name}.csv").write_text(f"title,verdict\n{rows}")
    done = call(
        *("--task", "custom", "--data", tmp_path, "--text-columns", "title", "--steps", 1),
        *("--label-column", "verdict", "--batch-size", 2, "--output", tmp_path / "out"),
    )
    assert done.exit_code == 0, done.output
    layers = json.loads((tmp_path / "out" / "report.json").read_text())["layers"]
    assert layers["classifier"]["out_features"] == 2


def test_whole_numbers_can_be_analyzed_as_a_regression(tmp_path):
    for name in ("train", "dev"):
        rows = "".join(f"a film of {i},{i % 4}\n" for i in range(8))
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{rows}")
    done = call(
        *("--task", "custom", "--data", tmp_path, "--regression", "--steps", 1),
        *("--batch-size", 2, "--output", tmp_path / "out"),
    )
    assert done.exit_code == 0, done.output
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    assert content["layers"]["classifier"]["out_features"] == 1


# The table and the page of other models.


def report(layers, width=8):
    torch.manual_seed(0)
    model = torch.nn.ModuleDict(
        {f"l{i}": torch.nn.Linear(width, 3) for i in range(layers)} | {"<b>": torch.nn.Linear(8, 1)}
    )
    with analysis.record(model, thresholds=(2.0,), bits=(12,)) as recording:
        for name, module in model.items():
            if name != "l0":
                module(torch.randn(5, 8)).sum().backward()
    return recording.report({"who": "<me>"})


def test_a_long_table_is_cut_and_a_narrow_one_has_fewer_columns():
    found = report(MOST_ROWS + 3)
    assert len(found.layers) == MOST_ROWS + 3
    wide, narrow = table(found, WIDE), table(found, 80)
    assert wide.row_count == narrow.row_count == MOST_ROWS
    assert "3 more layers are in the report" in wide.caption
    assert [column.header for column in narrow.columns] == [
        "layer", "worst dB", "columns", "y dB"
    ]  # fmt: skip
    assert max(map(len, str(found).splitlines())) <= TEXT_WIDTH


def test_names_are_escaped_and_what_is_missing_is_named(tmp_path):
    found = report(3)
    page.write(found, tmp_path / "page.html", list(found.layers))
    text = (tmp_path / "page.html").read_text()
    assert "<b>" not in text
    assert "&lt;b&gt;" in text
    assert "&lt;me&gt;" in text
    assert "l0: never called" in text
    assert Page(text).open == []


def test_a_page_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="report must have a layer"):
        page.write(analysis.Report({}, [], {}), tmp_path / "page.html", [])


def test_shared_prefix_is_that_of_two_thirds():
    assert shared_prefix(["a.b.c", "a.b.d", "e"]) == "a.b."
    assert shared_prefix(["a.b", "c.d", "e"]) == ""
    assert shared_prefix([]) == ""


@pytest.mark.parametrize("x", [torch.zeros(4, 8), torch.full((4, 8), 1e30)], ids=["zeros", "huge"])
def test_a_page_of_forward_passes_alone(x, tmp_path):
    model = torch.nn.Linear(8, 3)
    with analysis.record(model) as recording:
        model(x)
    found = recording.report()
    page.write(found, tmp_path / "page.html", [""])
    text = (tmp_path / "page.html").read_text()
    assert "(root)" in text
    shown = Page(text)
    assert shown.open == []
    assert "Gradients" not in shown.texts
    json.dumps(found.to_json(), allow_nan=False)
    assert "recommended" in str(found)
