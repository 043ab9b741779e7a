"""The README tells the truth: its code runs, its options exist, its files are where it says."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from int8tile import Int8TileConfig
from int8tile.cli import app
from int8tile.finetune.settings import TASK_NAMES

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_python_blocks_run_in_order():
    pytest.importorskip("transformers", reason="needs the demo extra")
    torch.manual_seed(0)
    found, names = blocks("python"), {}
    assert len(found) >= 5
    for code in found:
        exec(compile(code, "README.md", "exec"), names)


def test_option_table_is_the_config():
    rows = re.findall(r"^\| `(\w+)` \| `(.+?)` \|", README, re.MULTILINE)
    fields = [(f.name, f.default) for f in dataclasses.fields(Int8TileConfig)]
    assert [(name, eval(default)) for name, default in rows] == fields


def test_commands_have_the_options_shown():
    lines = [line for block in blocks("console") for line in block.splitlines()]
    calls = [line.split("int8tile ", 1)[1].split() for line in lines if "int8tile " in line]
    names = [words[0] for words in calls]
    assert names == ["finetune", "finetune", "plan", "info", *["finetune"] * 8, "analyze"]
    for command, *words in calls:
        shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output
        assert all(word in shown for word in words if word.startswith("--"))


def test_tasks_shown_are_those_there_are():
    table = re.search(r"\| `--task` .*?\n\n", README, re.DOTALL)[0]
    rows = [line.split("|")[1] for line in table.splitlines()[2:] if line]
    names = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(names) == sorted(TASK_NAMES)


def test_layout_names_real_files():
    (tree,) = blocks("text")
    top, paths = Path(), []
    for line in tree.splitlines():
        indent, folder, text = re.fullmatch(r"( *)(\S+/) +(.*)", line).groups()
        here = top / folder if indent else Path(folder)
        top = top if indent else here
        paths += [here, *(here / word for word in text.split() if re.fullmatch(r"\w+\.py", word))]
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            heading = target[1:].replace("-", " ")
            assert re.search(rf"^#+ {heading}$", README, re.MULTILINE | re.IGNORECASE), target
        elif not target.startswith("https://"):
            assert (ROOT / target.split("#")[0]).is_file(), target
