#!/usr/bin/env bash
# Builds int8tile for the GPU of this machine, tests it there against the CPU, runs compute-sanitizer
# over it and benchmarks it. Needs nvcc, g++ and Python with torch; no network.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: bench/gpu.sh [options]

  --wheels DIR    wheels to install from, where Python lacks some (default $INT8TILE_WHEELS)
  --cutlass DIR   headers of CUTLASS: a checkout, its include folder, or an unpacked nvidia-cutlass
                  (default $INT8TILE_CUTLASS_DIR, else the Python package nvidia-cutlass)
  --output DIR    where gpu.json and the logs go (default bench/results)
  --work DIR      where the build and the installed packages go (default build/gpu)
  --only STAGES   some of build,tests,sanitizer,bench (default all; build first, the rest uses it)
  --limit SECONDS all must end by then (default 530)
  --help          this text

PYTHON names the interpreter (default python3). What a machine without network lacks can be carried;
for its version of Python, here 3.12:

  pip download --only-binary=:all: --python-version 3.12 -d wheels \
    pybind11 scikit-build-core cmake ninja pytest pytest-xdist typer rich numpy
  pip download --no-deps -d wheels nvidia-cutlass==4.2.0.0

Ends with status 0 where everything that ran passed; what could not run is named in the summary.
TEXT
}

fail() {
  printf 'gpu.sh: %s\n' "$@" >&2
  exit 1
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
wheels=${INT8TILE_WHEELS:-}
cutlass=${INT8TILE_CUTLASS_DIR:-}
output=$root/bench/results
work=$root/build/gpu
stages=build,tests,sanitizer,bench
limit=530
while (($#)); do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --wheels | --cutlass | --output | --work | --only | --limit)
      (($# > 1)) || fail "$1 needs a value; see --help" ;;&
    --wheels) wheels=$2 ;;
    --cutlass) cutlass=$2 ;;
    --output) output=$2 ;;
    --work) work=$2 ;;
    --only) stages=$2 ;;
    --limit) limit=$2 ;;
    *) fail "unknown option $1; see --help" ;;
  esac
  shift 2
done
[[ $limit =~ ^[1-9][0-9]*$ ]] || fail "--limit must be a whole number of seconds; got '$limit'"
for stage in ${stages//,/ }; do
  [[ $stage =~ ^(build|tests|sanitizer|bench)$ ]] ||
    fail "--only must be some of build,tests,sanitizer,bench; got '$stage'"
done
chosen() { [[ ,$stages, == *,$1,* ]]; }
remaining() { echo $((limit > SECONDS ? limit - SECONDS : 1)); }
# share PERCENT: of the seconds that remain; at least one, since none is no limit to timeout.
share() { echo $(($(remaining) * $1 / 100 + 1)); }

# Paths of the caller, made absolute before the folder changes.
[[ -z $wheels || -d $wheels ]] || fail "--wheels: no folder '$wheels'"
[[ -z $wheels ]] || wheels=$(cd "$wheels" && pwd)
[[ -z $cutlass || -d $cutlass ]] || fail "--cutlass: no folder '$cutlass'"
[[ -z $cutlass ]] || cutlass=$(cd "$cutlass" && pwd)
mkdir -p "$output" "$work" || fail "cannot write to '$output' and '$work'; choose --output and --work"
output=$(cd "$output" && pwd)
work=$(cd "$work" && pwd)
cd "$root"

site=$work/site
export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
export PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1
export PATH=$site/bin:$PATH:/usr/local/cuda/bin
declare -A outcome
failed=0

# record STAGE OUTCOME: for the summary; an outcome that starts with FAILED decides the status.
record() {
  outcome[$1]=$2
  [[ $2 != FAILED* ]] || failed=1
  printf '== %s: %s\n' "$1" "$2"
}

# What runs now, since the stages' own output goes to their logs.
begin() { printf '== %s ... (%d s)\n' "$1" "$SECONDS"; }

installed() {
  "$python" -c 'import importlib.util, sys
sys.exit(importlib.util.find_spec(sys.argv[1]) is None)' "$1"
}

check_machine() {
  command -v "$python" >/dev/null || fail "no $python on PATH; set PYTHON to one that has torch"
  "$python" - <<'PY' || exit 1
import sys
other = "set PYTHON to 3.11 or newer that has torch"
if sys.version_info < (3, 11):
    sys.exit(f"gpu.sh: {sys.executable} is Python {sys.version.split()[0]}; {other}")
try:
    import torch
except ImportError as error:
    sys.exit(f"gpu.sh: {sys.executable} cannot import torch ({error}); {other}")
if not torch.cuda.is_available():
    built = torch.version.cuda or "no CUDA"
    sys.exit(f"gpu.sh: torch {torch.__version__} (built for {built}) sees no GPU; nvidia-smi says why")
if torch.cuda.get_device_capability() < (8, 0):
    sys.exit(f"gpu.sh: {torch.cuda.get_device_name()} is older than compute capability 8.0")
PY
  command -v nvidia-smi >/dev/null || fail "no nvidia-smi on PATH, which says for which GPU to build"
  command -v nvcc >/dev/null || fail "no nvcc on PATH; add the bin folder of the CUDA toolkit"
  command -v g++ >/dev/null || fail "no g++ on PATH"
}

install_wheels() {
  if [[ -n $wheels ]]; then
    begin 'installing wheels'
    compgen -G "$wheels/*.whl" >/dev/null || fail "--wheels: no *.whl in '$wheels'"
    "$python" -m pip install --quiet --no-index --no-deps --upgrade --target "$site" \
      "$wheels"/*.whl || fail "pip could not install the wheels; are they for $("$python" --version)?"
  fi
  local missing
  missing=$("$python" - "$cutlass" "$(! chosen build || echo build)" <<'PY'
import importlib.util, shutil, sys
modules = ["pip", "pybind11", "scikit_build_core", "numpy", "typer", "rich", "pytest"]
if not sys.argv[1]:
    modules += ["cutlass_library"]
missing = [name for name in modules if importlib.util.find_spec(name) is None]
# Only to build: when pip has installed int8tile, it has removed what was in site/bin.
tools = ("cmake", "ninja") if sys.argv[2] else ()
print(*missing, *(name for name in tools if shutil.which(name) is None))
PY
  )
  [[ $missing != *cutlass_library* ]] ||
    fail 'no headers of CUTLASS: name their folder with --cutlass, or carry the wheel nvidia-cutlass'
  [[ -z $missing ]] ||
    fail "missing: $missing" 'carry their wheels in a folder and name it with --wheels; see --help'
}

build() {
  begin build
  # A kernel's compilation takes up to 4 GB.
  local jobs gigabytes status=0
  gigabytes=$(awk '/MemAvailable/ {print int($2 / 1048576)}' /proc/meminfo)
  jobs=$((gigabytes / 4 < $(nproc) ? gigabytes / 4 : $(nproc)))
  export CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$((jobs > 0 ? jobs : 1))}
  timeout "$(remaining)" "$python" -m pip install --verbose --no-index --no-deps --upgrade \
    --no-build-isolation --target "$site" --config-settings=build-dir="$work/build" \
    --config-settings=cmake.define.INT8TILE_CUDA=AUTO \
    ${cutlass:+--config-settings=cmake.define.INT8TILE_CUTLASS_DIR="$cutlass"} \
    . >"$output/build.log" 2>&1 || status=$?
  if ((status)); then
    tail -n 40 "$output/build.log" >&2
    fail "the build failed (status $status); the whole log is $output/build.log"
  fi
  check_installed
  record build "passed after $SECONDS s"
}

check_installed() {
  "$python" - <<'PY' || fail "build int8tile here first: run without --only"
import sys
try:
    from int8tile import _core
except ImportError as error:
    sys.exit(f"gpu.sh: int8tile cannot be imported: {error}")
if why := _core.cuda_unavailable() if _core.cuda_compiled else "it was built without CUDA":
    sys.exit(f"gpu.sh: int8tile cannot use the GPU: {why}")
PY
}

run_tests() {
  begin tests
  local options=(-m 'cuda and not slow' -p no:cacheprovider -W default) status=0 line
  ! installed xdist || options+=(-n 4)
  timeout "$(share 50)" "$python" -m pytest tests "${options[@]}" \
    >"$output/tests.log" 2>&1 || status=$?
  line=$(grep -E '^=+ .* in [0-9.]+s' "$output/tests.log" | tail -n 1 | tr -d =) || true
  case $status in
    0) [[ $line == *passed* ]] && record tests "$line" || record tests "FAILED: no test ran:$line" ;;
    124) record tests "FAILED: not done in time, see $output/tests.log" ;;
    *) grep -E '^(FAILED|ERROR)' "$output/tests.log" | head -n 20 || true
      record tests "FAILED:$line (status $status), see $output/tests.log" ;;
  esac
}

sanitize() {
  local sanitizer tool status log options
  sanitizer=$(command -v compute-sanitizer) || {
    record sanitizer 'not run: no compute-sanitizer on PATH or in /usr/local/cuda/bin'
    return
  }
  for tool in memcheck racecheck; do
    begin "$tool"
    status=0 log=$output/$tool.log options=(--tool "$tool" --kernel-name kns=int8tile)
    # Calls that fail are no errors of memory: torch tries what a driver may lack.
    [[ $tool != memcheck ]] || options+=(--report-api-errors no)
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout "$(share 25)" "$sanitizer" "${options[@]}" \
      --error-exitcode 86 "$python" bench/sanitize.py >"$log" 2>&1 || status=$?
    if ((status == 0)); then
      record "$tool" "passed: $(grep -E 'SUMMARY' "$log" | tail -n 1 | sed 's/^=* *//')"
    elif grep -q 'Device not supported' "$log"; then
      record "$tool" 'not run: it does not support this device'
    elif ((status == 124)); then
      record "$tool" "not run: not done in time, see $log"
    else
      tail -n 20 "$log"
      record "$tool" "FAILED (status $status), see $log"
    fi
  done
}

# Parts run in processes of their own, so that one that breaks the device leaves the others alone.
# bench PART SHARE OPTION...: one part may take so many percent of the time that remains.
bench() {
  local part=$1 seconds most status=0
  seconds=$(share "$2") most=$(remaining)
  shift 2
  timeout $((seconds + 45 < most ? seconds + 45 : most)) "$python" bench/bench_gpu.py \
    --parts "$part" --limit "$seconds" --budget 0.5 --json "$output/gpu.json" "$@" || status=$?
  case $status in
    0) record "bench $part" passed ;;
    124) record "bench $part" 'not run to its end: not done in time' ;;
    *) record "bench $part" "FAILED (status $status)" ;;
  esac
}

write_summary() {
  local name
  for name in "${!outcome[@]}"; do printf '%s\t%s\n' "$name" "${outcome[$name]}"; done |
    PYTHONPATH=bench:$PYTHONPATH "$python" -c '
import sys
from pathlib import Path
from cards import device_facts
from report import write_part
outcomes = dict(line.rstrip("\n").split("\t", 1) for line in sys.stdin)
write_part(Path(sys.argv[1]), "checks", {"environment": device_facts("cuda"), "outcomes": outcomes})
' "$output/gpu.json"
}

main() {
  check_machine
  install_wheels
  if chosen build; then build; else check_installed; fi
  if chosen tests; then run_tests; fi
  if chosen sanitizer; then sanitize; fi
  if chosen bench; then
    bench gemm 20
    bench linear 50 --compile
    if installed transformers; then
      bench step 70 --compile
    else
      record 'bench step' 'not run: transformers is not installed'
    fi
  fi
  write_summary || record summary "FAILED: not written to $output/gpu.json"
  printf '\nSummary after %d s; results in %s\n' "$SECONDS" "$output"
  for name in "${!outcome[@]}"; do printf '  %-14s %s\n' "$name" "${outcome[$name]}"; done
}

main
exit "$failed"
