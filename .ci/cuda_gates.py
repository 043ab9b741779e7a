"""Gates of the compiled CUDA kernels: no spills, int8 matrix instructions in each GEMM."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

MAX_REGISTERS = 255


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
    if "C7510" in log:
        wrong.append("ptxas serialized matrix instructions (C7510)")
    return wrong


def read_sass(library: Path) -> list[str]:
    """Count matrix and local-memory instructions per kernel and return what is wrong."""
    cuobjdump = shutil.which("cuobjdump")
    if cuobjdump is None:
        print("SASS was not read: cuobjdump is not on PATH")
        return []
    sass = subprocess.run([cuobjdump, "-sass", library], capture_output=True, text=True, check=True)
    wrong = []
    for part in sass.stdout.split("Function : ")[1:]:
        name = part.split("\n", 1)[0]
        words = Counter(re.findall(r"\b(IMMA|HGMMA|IGMMA|LDL|STL|FFMA)\b", part))
        print(f"{dict(words)}  {name}")
        if words["LDL"] or words["STL"]:
            wrong.append(f"{name}: local memory")
        if "sm80_kernel" in name and not words["IMMA"]:
            wrong.append(f"{name}: no int8 matrix instruction")
    return wrong


def main() -> int:
    """Read the build log and the library named on the command line."""
    log, library = (Path(argument) for argument in sys.argv[1:])
    wrong = [*read_ptxas(log.read_text()), *read_sass(library)]
    print(*wrong, sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
