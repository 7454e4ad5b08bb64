#!/usr/bin/env bash
# Everything a GPU has to answer, in one call that downloads nothing: builds here for this GPU, runs
# the tests marked gpu, compute-sanitizer on small calls, then the benchmarks.
#
#   benchmarks/gpu_gate.sh [PHASE..]     default: all of them, within 9 minutes
#
# Needs a python with torch, pytest and pybind11 (PYTHON=, else .venv, else python3), and cmake.
# A phase that cannot run here says why and is no failure; any that fails makes the exit status 1.
# Results go to $OUT, else to benchmarks/results/ (without a GPU: build/gpu_gate/).
set -uo pipefail
cd "$(dirname "$0")/.."

limits=(build 120 gpu_tests 160 memcheck 80 racecheck 80 initcheck 80 synccheck 80 bench 180)
sanitizers="memcheck racecheck initcheck synccheck"  # run side by side

work=$PWD/build/gpu_gate
site=$work/site
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ -x .venv/bin/python ] && PYTHON=$PWD/.venv/bin/python
fi
gpu=$("$PYTHON" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())' 2>/dev/null)
tools=$PATH:/usr/local/cuda/bin:/usr/local/cuda/compute-sanitizer
export PYTHON gpu work site PATH=$tools PYTHONPATH=$site

# ---- the phases: each in a shell of its own; the last line it prints stands in the table -----------

skip() { echo "$1" && exit 77; }
need_gpu() { [ -n "$gpu" ] || skip "no GPU that torch sees"; }
need() { [ "$(cat "$work/$1.verdict" 2>/dev/null)" != failed ] || skip "$1 failed"; }

build() {
  set -e
  local cuda=OFF kind="CPU kernels alone: no GPU that torch sees" python pybind11 version
  [ -z "$gpu" ] || { cuda=ON && kind="CPU kernels, and CUDA kernels for sm_$gpu"; }
  python=$("$PYTHON" -c 'import sys; print(sys.executable)')
  pybind11=$("$PYTHON" -m pybind11 --cmakedir)
  version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
  cmake -S . -B "$work/cmake" -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE="$python" \
    -Dpybind11_DIR="$pybind11" -DSKBUILD_PROJECT_VERSION="$version" \
    -DLOGPI_CUDA=$cuda -DLOGPI_CUDA_ARCHS="${gpu:+$gpu-real}"
  cmake --build "$work/cmake" --parallel "$(nproc)"
  rm -rf "$site" && mkdir -p "$site" && cp -r python/logpi "$site" && rm -f "$site"/logpi/_C*.so
  cmake --install "$work/cmake" --prefix "$site"
  (cd "$work" && "$PYTHON" -m logpi info)
  echo "$kind"
}

gpu_tests() {
  need_gpu && need build
  local side_by_side=()
  "$PYTHON" -c 'import xdist' 2>/dev/null && side_by_side=(-p xdist -n 4)
  # what else is installed here may warn, and every warning is an error
  PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 "$PYTHON" -m pytest -q -m gpu "${side_by_side[@]}" tests/gpu
}

sanitize() {  # TOOL ROW..
  need_gpu && need build
  command -v compute-sanitizer >/dev/null || skip "compute-sanitizer is not on PATH"
  local options=(--tool "$1" --error-exitcode 9) status
  [ "$1" = memcheck ] && options+=(--report-api-errors no)  # torch asks for symbols that are absent
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  compute-sanitizer "${options[@]}" "$PYTHON" tests/gpu/small_calls.py cuda "${@:2}" 2>&1 |
    tee "$work/$1.out"
  status=$?
  grep -q "Device not supported" "$work/$1.out" && skip "compute-sanitizer: device not supported"
  return $status
}
memcheck() { sanitize memcheck cuda triton; }
racecheck() { sanitize racecheck cuda; }
initcheck() { sanitize initcheck cuda; }
synccheck() { sanitize synccheck cuda; }

bench() {
  need build && need gpu_tests
  local out=${OUT:-benchmarks/results} choice=(--dtype bfloat16 --tests-were-green --budget 1)
  local logits=(--seconds 45 --shapes qwen2.5/8k qwen2.5/64 llama3/16k openvla/4k)
  local linear=(--seconds 10 --shapes qwen3-8b/8k qwen2.5-3b/4k)
  if [ -z "$gpu" ]; then  # only whether it runs
    out=${OUT:-$work/results}
    choice=(--dtype bfloat16 --no-tests --budget 0.2)
    logits=(--shapes 16x4096 call) linear=(--shapes 16x64x4096)
  fi
  choice+=(--out "$out")
  measure token_log_probs "${choice[@]}" "${logits[@]}" &&
    measure linear_log_probs "${choice[@]}" "${linear[@]}"
}

measure() {  # OP ARG..
  local json
  "$PYTHON" benchmarks/run.py "$@" | tee "$work/bench.out" || return
  json=$(grep '\.json$' "$work/bench.out")
  PYTHONPATH=$PWD:$site "$PYTHON" -m benchmarks.report "$json" >>"$work/summary" || return
  echo "$json"
}

# ---- running them ----------------------------------------------------------------------------------

run() {  # PHASE SECONDS
  local started=$SECONDS status verdict=ran why
  timeout -k 10 "$2" bash -uo pipefail -c "$1" >"$work/$1.log" 2>&1
  status=$?
  why=$(tail -n 1 "$work/$1.log")
  case $status in
    0) ;;
    77) verdict=skipped ;;
    124 | 137) verdict=failed why="over its $2 s" ;;
    *) verdict=failed why="exit status $status, see $work/$1.log" ;;
  esac
  echo "$verdict" >"$work/$1.verdict"
  [ $verdict = failed ] && tail -n 30 "$work/$1.log"
  printf '%-10s %-8s %4d s  %s\n' "$1" $verdict $((SECONDS - started)) "$why" | tee -a "$work/table"
}

limit_of() {  # seconds; a machine without a GPU is slow, and nobody lends it by the minute
  local patience=1
  [ -n "$gpu" ] || patience=5
  for ((at = 0; at < ${#limits[@]}; at += 2)); do
    [ "${limits[at]}" = "$1" ] && echo $((limits[at + 1] * patience))
  done
}

export -f skip need_gpu need build gpu_tests sanitize $sanitizers bench measure
phases=("$@")
[ $# -gt 0 ] || for ((at = 0; at < ${#limits[@]}; at += 2)); do phases+=("${limits[at]}"); done
for phase in "${phases[@]}"; do
  [ -n "$(limit_of "$phase")" ] && continue
  echo "$phase: expected a phase of ${limits[*]//[0-9]*/}" >&2
  exit 2
done
mkdir -p "$work" && rm -f "$work"/*.verdict "$work"/table "$work"/summary
for phase in "${phases[@]}"; do
  if [[ " $sanitizers " == *" $phase "* ]]; then
    run "$phase" "$(limit_of "$phase")" &
  else
    wait
    run "$phase" "$(limit_of "$phase")"
  fi
done
wait

echo
cat "$work/summary" 2>/dev/null
echo
echo "phase      verdict   time  remark"
cat "$work/table"
if [ -n "${OUT:-}" ]; then
  cp "$work/table" "$OUT/gpu_gate.txt"
  tail -n 300 "$work"/*.log >"$OUT/gpu_gate.log"
fi
! grep -qx failed "$work"/*.verdict
