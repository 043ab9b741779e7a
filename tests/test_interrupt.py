"""Interrupts of a run: a checkpoint, a command that goes on with it, and a second interrupt."""

import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import threading

import pytest

pytest.importorskip("transformers", reason="needs the demo extra")

from int8tile.finetune import run
from int8tile.finetune.interruption import InterruptedRun, Interruption
from int8tile.finetune.processes import Processes, resume_command
from runs import (
    SIGNALED,
    call,
    environment,
    names,
    options,
    ours,
    save_bert,
    save_task,
    settings,
    signal_at,
)

HANDLERS = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interrupt")
    save_bert(folder / "bert")
    save_task(folder / "sst2", evaluation=20)
    return folder


@pytest.fixture
def cut(folder, tmp_path):
    return settings(folder, tmp_path / "cut", save_every=2, epochs=3.0)


def test_the_command_that_is_printed_goes_on(cut):
    stopped = call(*options(cut), script=[SIGNALED], SIGNAL="SIGINT:0:4")
    assert stopped.returncode == 130
    (ending, goes_on) = ours(stopped.stderr)
    assert ending == "ending after the step in progress; once more to stop at once"
    saved = cut.output / "checkpoints" / "int8-split"
    assert names(saved) == ["checkpoint-4", "checkpoint-5"]
    assert names(cut.output) == ["checkpoints"]
    before, command = goes_on.split(": ", 1)
    assert before == "interrupted; go on with"
    assert command == shlex.join(["python", "-m", "int8tile", *options(cut), "--resume"])
    program, *arguments = shlex.split(command)
    finished = subprocess.run(
        [sys.executable, *arguments], env=environment(), capture_output=True, text=True, check=False
    )
    assert program == "python"
    assert finished.returncode == 0, finished.stderr
    assert f"int8-split: goes on from {saved / 'checkpoint-5'}" in finished.stdout
    assert json.loads((cut.output / "metrics.json").read_text())["arms"]["int8-split"]


def test_sigterm_from_outside_ends_a_run_too(folder, tmp_path):
    each = settings(folder, tmp_path / "cut", epochs=100.0)
    process = subprocess.Popen(
        [sys.executable, "-m", "int8tile", *options(each)],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while "int8-split: step 60/300" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 130
    assert ours(errors)[-1].startswith("interrupted; go on with: python -m int8tile finetune")
    assert len(names(each.output / "checkpoints" / "int8-split")) == 1


def test_sigterm_saves_a_checkpoint(cut, monkeypatch):
    signal_at(monkeypatch, 4, signal.SIGTERM)
    with pytest.raises(InterruptedRun):
        run(cut)
    assert names(cut.output / "checkpoints" / "int8-split") == ["checkpoint-4", "checkpoint-5"]


@pytest.mark.parametrize("method", ["training_step", "save_model"])
def test_a_second_interrupt_stops_at_once(cut, monkeypatch, method):
    signal_at(monkeypatch, 4, method="training_step")
    signal_at(monkeypatch, 4 if method == "training_step" else 5, method=method)
    with pytest.raises(InterruptedRun):
        run(cut)
    assert names(cut.output) == ["checkpoints"]
    assert names(cut.output / "checkpoints") == ["int8-split"]
    assert names(cut.output / "checkpoints" / "int8-split") == ["checkpoint-2", "checkpoint-4"]


def test_an_interrupt_before_the_first_step_leaves_nothing(cut, monkeypatch):
    monkeypatch.setattr("int8tile.finetune.tasks.prepare", interrupt_now)
    with pytest.raises(KeyboardInterrupt) as raised:
        run(cut)
    assert raised.type is KeyboardInterrupt
    assert not cut.output.exists()


def interrupt_now(_):
    os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupt_after_training_lets_the_run_finish(cut, monkeypatch):
    monkeypatch.setattr("int8tile.finetune.report.draw_curves", lambda *_: interrupt_now(_))
    result = run(dataclasses.replace(cut, max_steps=1))
    assert result.arms["int8-split"].loss > 0
    assert names(cut.output) == ["checkpoints", "metrics.json", "model"]


def test_an_error_leaves_nothing_half_written(cut, monkeypatch):
    def full(_):
        raise OSError("no space left")

    monkeypatch.setattr("int8tile.finetune.checkpoints._to_disk", full)
    with pytest.raises(OSError, match="no space left"):
        run(cut)
    assert not cut.output.exists()


def test_the_handlers_are_put_back(cut, monkeypatch):
    signal_at(monkeypatch, 1)
    with pytest.raises(InterruptedRun):
        run(cut)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == HANDLERS


def test_a_thread_runs_without_handlers():
    def body():
        with Interruption(Processes()).handled():
            found.append(signal.getsignal(signal.SIGINT))

    found = []
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert found == HANDLERS[:1]


def test_a_launcher_that_passes_a_signal_on_is_no_second_interrupt(monkeypatch):
    clock = [10.0]
    monkeypatch.setattr("int8tile.finetune.interruption.time.monotonic", lambda: clock[0])
    interruption = Interruption(Processes(count=2, index=1))
    with interruption.handled(), interruption.waits():
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.asked_here
        clock[0] += 0.5
        os.kill(os.getpid(), signal.SIGINT)
        clock[0] += 1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


def test_the_command_to_go_on_is_that_of_the_launcher(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    argv = ["/usr/bin/int8tile", "finetune", "--output", "a b", "--resume"]
    assert resume_command(argv) == "int8tile finetune --output 'a b' --resume"
    argv[0] = "/usr/lib/int8tile/__main__.py"
    assert resume_command(argv) == "python -m int8tile finetune --output 'a b' --resume"
    monkeypatch.setenv("WORLD_SIZE", "2")
    command = "torchrun --nproc-per-node 2 -m int8tile finetune --output 'a b' --resume"
    assert resume_command(argv) == command
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert resume_command(argv) == command
    monkeypatch.setenv("WORLD_SIZE", "6")
    assert resume_command(argv) == "the same launch, with --resume"
