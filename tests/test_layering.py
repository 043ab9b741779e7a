"""The dependency rule, read from includes and imports, and the first line of each source file."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "python" / "int8tile"
CPP = [*(ROOT / "cpp").rglob("*.hpp"), *(ROOT / "cpp").rglob("*.cpp")]
KERNELS = [path for path in CPP if path.parent.name == "kernels"]
CUDA = [path for pattern in ("*.hpp", "*.cu", "*.cuh") for path in (ROOT / "cuda").rglob(pattern)]
BINDINGS = sorted((ROOT / "python" / "bindings").glob("*.cpp"))
MODULES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = ("cpp", "cuda", "python", "tests", "bench")
SOURCES = sorted(
    path
    for folder in FOLDERS
    for pattern in ("*.hpp", "*.cpp", "*.cu", "*.cuh", "*.py", "*.pyi", "CMakeLists.txt")
    for path in (ROOT / folder).rglob(pattern)
)

# A module may import only from layers with a smaller number, or from its own package.
LAYERS = {
    "_core": 0,
    "config": 1,
    "reference": 1,
    "planning": 1,
    "gpus": 1,
    "ops": 2,
    "nn": 3,
    "": 4,  # the package's own __init__: what users import
    "analysis": 5,
    "hf": 5,
    "torchao": 5,
    "finetune": 6,
    "cli": 7,
    "__main__": 8,
}
SYSTEM_HEADERS = {"immintrin.h", "omp.h", "sys/mman.h", "unistd.h"}
FOREIGN = re.compile(r"cuda|cublas|cutlass|cute/|torch|ATen|c10/|pybind11|Python\.h")


def name(path):
    return str(path.relative_to(ROOT))


def includes(path):
    """(text between the brackets or quotes, whether it was quoted) of each #include."""
    found = re.findall(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', path.read_text(), re.MULTILINE)
    return [(header, mark == '"') for mark, header in found]


def layer_of(module):
    """int8tile.ops.cpu -> ops."""
    return [*module.split("."), ""][1]


def imports(path):
    """Full names of the int8tile modules that a file imports, at any depth of its code."""
    package = ["int8tile", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            names = [f"int8tile.{a.name}" for a in node.names] if module == "int8tile" else [module]
        else:
            continue
        yield from (full for full in names if full.split(".")[0] == "int8tile")


def layer_of_file(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if part == "__init__" else part


@pytest.mark.parametrize("path", CPP, ids=name)
def test_the_core_includes_nothing_foreign(path):
    own = [ROOT / "cpp" / "include", ROOT / "cpp" / "src", path.parent]
    for header, quoted in includes(path):
        assert not FOREIGN.search(header)
        if quoted:
            assert any((folder / header).is_file() for folder in own), header
        else:
            assert header in SYSTEM_HEADERS or re.fullmatch(r"[a-z_]+", header), header


@pytest.mark.parametrize("path", KERNELS, ids=name)
def test_kernels_include_no_standard_library(path):
    """An inline library function compiled for AVX-512 can be the copy that the linker keeps."""
    system = {header for header, quoted in includes(path) if not quoted}
    assert system <= {"cstdint", "immintrin.h"}
    quoted = {header for header, quoted in includes(path) if quoted}
    assert quoted <= {each.name for each in path.parent.glob("*.hpp")}
    assert "std::" not in path.read_text()


@pytest.mark.parametrize(
    "path", [p for p in CPP if p.parent.name == "int8tile"], ids=lambda path: path.name
)
def test_public_headers_do_not_reach_into_the_sources(path):
    for header, quoted in includes(path):
        assert not quoted or header.startswith("int8tile/")


@pytest.mark.parametrize("path", CUDA, ids=name)
def test_the_cuda_backend_knows_nothing_of_python(path):
    own = [ROOT / "cpp" / "include", ROOT / "cuda" / "include", ROOT / "cuda", path.parent]
    for header, quoted in includes(path):
        assert not re.search(r"torch|ATen|c10/|pybind11|Python\.h", header)
        if quoted:
            assert any((folder / header).is_file() for folder in own), header
        if "cute/" in header:
            assert path.parent.name == "gemm", "only the GEMM sees CUTLASS"


def test_the_host_api_of_cuda_is_plain_cpp():
    found = {header for header, _ in includes(ROOT / "cuda" / "include" / "int8tile" / "cuda.hpp")}
    assert found == {"cstdint", "string", "int8tile/types.hpp"}


def test_only_the_bindings_see_pybind11():
    assert BINDINGS
    users = [path for path in SOURCES if re.search(r"#\s*include\s*<pybind11", path.read_text())]
    emulation = [ROOT / "tests" / "emulation" / "module.cpp"]
    assert users == [*BINDINGS, *emulation]


@pytest.mark.parametrize("path", BINDINGS, ids=name)
def test_the_bindings_know_nothing_of_torch(path):
    for header, quoted in includes(path):
        assert not re.search(r"torch|ATen|c10/|cutlass", header)
        own = header == "arguments.hpp" or header.startswith("int8tile/")
        assert not quoted or own, "a private header of the core"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_modules_import_only_from_the_layers_below(path):
    mine = layer_of_file(path)
    assert mine in LAYERS, "add the new module to LAYERS"
    for module in imports(path):
        theirs = layer_of(module)
        if theirs not in LAYERS:  # a name of the package itself, not a module
            theirs = ""
        assert theirs == mine or LAYERS[theirs] < LAYERS[mine], f"{mine} imports {module}"


@pytest.mark.parametrize("path", [PACKAGE / "reference.py", PACKAGE / "config.py"], ids=name)
def test_reference_and_config_need_no_torch(path):
    assert not re.search(r"^\s*(import|from)\s+torch", path.read_text(), re.MULTILINE)


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_the_package_imports_no_tests_and_no_benchmarks(path):
    others = {p.stem for folder in ("tests", "bench") for p in (ROOT / folder).glob("*.py")}
    roots = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            roots.add((node.module or "").split(".")[0])
    assert not roots & others


def test_a_feature_is_asked_for_in_one_file_only():
    places = {}
    for path in SOURCES:
        if path.suffix in (".hpp", ".cpp", ".cu", ".cuh"):
            for line in re.findall(
                r"^\s*#\s*(?:if|ifdef|ifndef|elif)\b(.*)$", path.read_text(), re.M
            ):
                for feature in re.findall(r"\b(?:INT8TILE_\w+|_OPENMP|__\w+__)\b", line):
                    places.setdefault(feature, set()).add(name(path))
    assert "INT8TILE_X86" in places
    assert {feature: files for feature, files in places.items() if len(files) > 1} == {}


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_every_file_says_what_it_holds(path):
    """The first line starts a comment or a docstring, which is a sentence."""
    text = path.read_text()
    if path.suffix in (".py", ".pyi"):
        assert text.startswith('"""'), "the first line is a docstring"
        first = ast.get_docstring(ast.parse(text)).split("\n\n")[0]
    else:
        mark = "#" if path.name == "CMakeLists.txt" else "//"
        assert text.startswith(f"{mark} "), "the first line is a comment"
        lines = re.match(rf"(?:{mark}.*\n)+", text)[0]
        first = lines.replace(mark, "")
    assert len(first.split()) >= 3
    assert re.search(r"[.:]$", first.strip())


def test_tests_are_found_without_the_extra_demo(tmp_path):
    """As on a machine with a GPU and no network; -m cuda runs those that need no more."""
    names = ("transformers", "accelerate", "peft", "datasets", "matplotlib", "safetensors")
    hidden = f"import sys\nsys.modules.update(dict.fromkeys({names}))\n"
    (tmp_path / "sitecustomize.py").write_text(hidden)
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "cuda"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", str(ROOT / "tests")],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "tests/test_ops.py" in done.stdout
    assert "needs the demo extra" in done.stdout
