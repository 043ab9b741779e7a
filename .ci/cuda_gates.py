"""Gates of the compiled CUDA kernels: no spills, int8 matrix instructions in each GEMM."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

MAX_REGISTERS = 255
HANDED_OVER = ("Sm90LayoutILi128E", 168)  # its consumers would wait forever for more registers
MATRIX_INSTRUCTION = {"sm80_kernel": "IMMA", "sm90_kernel": "IGMMA"}
RELEASE = [("sm80_kernel", "sm_80"), ("sm90_kernel", "sm_90a")]
GEMMS = 8  # of each family: 4 types of output, 2 tiles


def read_ptxas(log: str) -> list[str]:
    """Print one line per kernel and return what is wrong."""
    wrong = []
    entries = re.split(r"ptxas info\s*: Compiling entry function '", log)[1:]
    if not entries:
        return ["the log names no kernel; was it a fresh build with -Xptxas=-v?"]
    for entry in entries:
        name = entry.split("'", 1)[0]
        spills = [int(n) for n in re.findall(r"(\d+) bytes spill", entry)]
        (registers,) = re.findall(r"Used (\d+) registers", entry)[:1]
        print(f"{registers:>4} registers {sum(spills):>4} bytes spilled  {name}")
        if sum(spills) or int(registers) > MAX_REGISTERS:
            wrong.append(f"{name}: {registers} registers, {sum(spills)} bytes spilled")
        layout, at_start = HANDED_OVER
        if layout in name and int(registers) != at_start:
            wrong.append(f"{name}: starts with {registers} registers, not {at_start}")
    if "C7510" in log:
        wrong.append("ptxas serialized matrix instructions (C7510)")
    if re.search(r"setmaxnreg\b.*\bignored", log):
        wrong.append("ptxas ignored setmaxnreg: the consumers have too few registers")
    return wrong


def read_sass(library: Path) -> list[str]:
    """Count matrix and local-memory instructions per kernel and return what is wrong."""
    if shutil.which("cuobjdump") is None:
        return ["the machine code was not read: cuobjdump is not on PATH"]
    wrong = []
    gemms: Counter[tuple[str, str]] = Counter()  # (family of the kernel, architecture)
    for arch, name, code in functions(dump(library, "-sass")):
        words = Counter(re.findall(r"\b(IMMA|HGMMA|IGMMA|LDL|STL|FFMA)\b", code))
        print(f"{arch:8} {dict(words)}  {name}")
        if words["LDL"] or words["STL"]:
            wrong.append(f"{name} for {arch}: local memory")
        for family, instruction in MATRIX_INSTRUCTION.items():
            if family not in name:
                continue
            gemms[family, arch] += 1
            if not words[instruction]:
                wrong.append(f"{name} for {arch}: no {instruction}")
            if words["HGMMA"]:
                wrong.append(f"{name} for {arch}: HGMMA, which is not for int8")
            if re.search(rf"\b{instruction}\S*\.SAT\b", code):
                wrong.append(f"{name} for {arch}: sums saturate")
    print(*(f"{count} {family} for {arch}" for (family, arch), count in gemms.items()), sep="\n")
    for family, arch in RELEASE:
        if gemms[family, arch] != GEMMS:
            wrong.append(f"{gemms[family, arch]} of {GEMMS} {family} for {arch} in machine code")
    if not re.search(r"\bsm_80\.ptx\b", dump(library, "-lptx")):
        wrong.append("no PTX for 8.0, which later GPUs need")
    return wrong


def dump(library: Path, what: str) -> str:
    """What cuobjdump prints."""
    return subprocess.run(
        ["cuobjdump", what, library], capture_output=True, text=True, check=True
    ).stdout


def functions(sass: str) -> Iterator[tuple[str, str, str]]:
    """(architecture, name, code) of each function; one function may be there for several."""
    for module in re.split(r"^\s*code for ", sass, flags=re.MULTILINE)[1:]:
        arch = module.split("\n", 1)[0].strip()
        for part in module.split("Function : ")[1:]:
            name, code = part.split("\n", 1)
            yield arch, name, code


def main() -> int:
    """Read the build log and the library named on the command line."""
    log, library = (Path(argument) for argument in sys.argv[1:])
    wrong = [*read_ptxas(log.read_text()), *read_sass(library)]
    print(*wrong, sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
