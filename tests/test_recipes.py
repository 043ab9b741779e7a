"""The recipes run as they are written, those for several processes under torchrun."""

import re
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="needs the demo extra")
pytest.importorskip("accelerate", reason="needs the demo extra")

import torch

from runs import TORCHRUN, call
from tasks import own_accelerator  # noqa: F401 - a fixture

RECIPES = (Path(__file__).resolve().parents[1] / "docs" / "recipes.md").read_text()
INTRODUCTION, *SECTIONS = re.split(r"^## ", RECIPES, flags=re.MULTILINE)
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
(SETUP,) = BLOCK.findall(INTRODUCTION)
CODE = {section.splitlines()[0]: "".join(BLOCK.findall(section)) for section in SECTIONS}
DISTRIBUTED = ("DDP", "FSDP2", "Tensor parallelism")
NEEDS = {"LoRA of PEFT": "peft", "torchao": "torchao"}


def execute(code):
    exec(compile(code, "recipes.md", "exec"), {})


def test_every_recipe_has_code():
    assert len(CODE) == 8
    assert all(CODE.values())
    assert set(DISTRIBUTED) < set(CODE)


# PEFT reads an attribute that transformers has renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
@pytest.mark.usefixtures("own_accelerator")
@pytest.mark.parametrize("name", [name for name in CODE if name not in DISTRIBUTED])
def test_a_recipe_runs(name, tmp_path, monkeypatch):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    execute(SETUP + CODE[name])


# Gloo's threads outlive `destroy_process_group`, and one that frees its last tensor while the
# interpreter ends aborts the process, on a busy machine, in a script without int8tile too.
LEAVE = """
import os
os._exit(0)
"""


@pytest.mark.parametrize("name", DISTRIBUTED)
def test_a_recipe_for_several_processes_runs(name, tmp_path):
    (tmp_path / "recipe.py").write_text(CODE[name] + LEAVE)
    done = call(str(tmp_path / "recipe.py"), script=TORCHRUN)
    assert done.returncode == 0, done.stderr
