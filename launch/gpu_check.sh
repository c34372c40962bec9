#!/usr/bin/env bash
# Everything that needs a GPU, in one go, with what is installed: nothing is downloaded.
#
#   launch/gpu_check.sh [--parts LIST] [--python PYTHON] [--nccl LIBRARY] [--ranks N] [--out FOLDER]
#
#   --parts   comma-separated, in this order by default:
#               build       lgreco in place, against the torch that is there
#               tests       tests/gpu
#               memcheck    compute-sanitizer on the awkward sizes: accesses out of bounds
#               racecheck   the same: races in shared memory
#               synccheck   the same: threads that wait for each other wrongly
#               benchmarks  the CUDA kernels
#               ranks       several ranks: replicas, losses, inf, step times
#   --python  the interpreter that has torch (default: python3)
#   --nccl    a libnccl.so.2 of 2.30 or newer, preloaded so that several NCCL ranks can share a GPU; without it NCCL
#             runs one rank a GPU, or Gloo carries the CUDA tensors where there is only one
#   --ranks   ranks of the last part (default: 2)
#   --out     where results go (default: $OUT, else benchmarks/results): gpu_check.json, gpu_check.log and one JSON each
#             of the benchmarks and the ranks
#
# Each part has a time limit. A part that fails does not stop the next ones; the exit status says whether any did.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

parts=build,tests,memcheck,racecheck,synccheck,benchmarks,ranks
python=python3 nccl='' ranks=2 out=${OUT:-benchmarks/results}

die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

while [[ $# -gt 0 ]]; do
  case $1 in
    -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit 0 ;;
    --parts | --python | --nccl | --ranks | --out)
      [[ $# -ge 2 ]] || die "$1 needs a value"
      printf -v "${1#--}" '%s' "$2"
      shift 2
      ;;
    *) die "unknown argument $1; see --help" ;;
  esac
done

command -v "$python" >/dev/null || die "found no $python; name an interpreter that has torch with --python"
python=$(command -v "$python")
"$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' ||
  die "the torch of $python sees no GPU; name another interpreter with --python"
[[ -z $nccl || -e $nccl ]] || die "--nccl names $nccl, which is not there"
[[ -z $nccl ]] || nccl=$(realpath "$nccl")
known=' build tests memcheck racecheck synccheck benchmarks ranks '
for part in ${parts//,/ }; do
  [[ $known == *" $part "* ]] || die "unknown part $part; the parts are:$known"
done
[[ $ranks =~ ^[1-9][0-9]*$ ]] || die "--ranks must be a positive number, got $ranks"
mkdir -p "$out" || die "cannot make the folder $out"
out=$(realpath "$out")
log=$out/gpu_check.log
results=$(mktemp)
trap 'rm -f "$results"' EXIT
: >"$log"

# Build tools may come as Python packages whose programs are not on PATH.
for tool in cmake ninja; do
  folder=$("$python" - "$tool" <<'PYTHON' 2>/dev/null
import importlib, sys
module = importlib.import_module(sys.argv[1])
print(getattr(module, "CMAKE_BIN_DIR", None) or module.BIN_DIR)
PYTHON
  ) && PATH=$PATH:$folder
done
PATH=$PATH:/usr/local/cuda/bin
export PATH PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

# run_part NAME LIMIT_S COMMAND...: its output goes to the screen and the log, its fate to the results.
run_part() {
  local name=$1 limit_s=$2 began status fate
  shift 2
  printf '\n==> %s: %s\n' "$name" "$*" | tee -a "$log"
  began=$(date +%s)
  timeout --kill-after=15 "$limit_s" "$@" 2>&1 | tee -a "$log"
  status=${PIPESTATUS[0]}
  case $status in
    0) fate=passed ;;
    124 | 137) fate="over $limit_s s" ;;
    *) fate="failed ($status)" ;;
  esac
  printf '%s\t%s\t%s\n' "$name" "$fate" "$(($(date +%s) - began))" | tee -a "$results" >>"$log"
}

skip_part() {
  printf '\n==> %s: failed, %s\n' "$1" "$2" | tee -a "$log"
  printf '%s\tfailed: %s\t0\n' "$1" "$2" >>"$results"
}

build() {
  local archs
  archs=$("$python" -c 'import torch; print(";".join(sorted({"%d%d" % torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())})))')
  export LGRECO_CUDA=1 LGRECO_CUDA_ARCHS=${LGRECO_CUDA_ARCHS:-$archs}
  if command -v ninja >/dev/null; then
    run_part build 480 "$python" setup.py --quiet build_ext --inplace
  else  # setup.py asks for Ninja; CMake itself does with make
    local folder=build/gpu-check
    run_part configure 120 cmake -S . -B "$folder" -G 'Unix Makefiles' -DPython_EXECUTABLE="$python" -DLGRECO_CUDA=1 \
      -DCMAKE_CUDA_ARCHITECTURES="$LGRECO_CUDA_ARCHS"
    run_part build 480 cmake --build "$folder" --parallel "$(nproc)"
    run_part install 60 cmake --install "$folder" --prefix "$PWD"
  fi
}

# Without CUDA kernels pytest would skip every test and call that a success.
has_kernels() {
  "$python" -c 'import sys; from lgreco import _C; sys.exit(not _C.build_info()["cuda"])' 2>/dev/null ||
    { skip_part "$1" "lgreco is not built with CUDA here (part build)"; return 1; }
}

run_tests() {
  has_kernels tests || return
  run_part tests 300 "$python" -m pytest -q -p no:cacheprovider tests/gpu
}

sanitize() {
  local tool=$1
  has_kernels "$tool" || return
  command -v compute-sanitizer >/dev/null || { skip_part "$tool" "found no compute-sanitizer"; return; }
  # torch's allocator hands out pieces of large blocks, which would hide an access beyond a tensor's end.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 run_part "$tool" 300 compute-sanitizer --tool "$tool" --error-exitcode 77 \
    --target-processes all "$python" -m pytest -q -p no:cacheprovider tests/gpu/test_kernels_cuda.py -k awkward
}

run_ranks() {
  local settings=(CUBLAS_WORKSPACE_CONFIG=:4096:8) backend=gloo  # deterministic cuBLAS asks for a fixed workspace
  if [[ -n $nccl ]]; then
    backend=nccl
    settings+=("LD_PRELOAD=$nccl" NCCL_MULTI_RANK_GPU_ENABLE=1 NCCL_NVLS_ENABLE=0 NCCL_MAX_CTAS=4)
  elif (($("$python" -c 'import torch; print(torch.cuda.device_count())') >= ranks)); then
    backend=nccl
  fi
  run_part "ranks ($backend)" 300 env "${settings[@]}" "$python" -m torch.distributed.run --standalone \
    --nproc-per-node "$ranks" benchmarks/multirank.py --backend "$backend" --json "$out/gpu_ranks.json"
}

for part in ${parts//,/ }; do
  case $part in
    build) build ;;
    tests) run_tests ;;
    memcheck | racecheck | synccheck) sanitize "$part" ;;
    benchmarks) run_part benchmarks 180 "$python" benchmarks/codec_cuda.py --json "$out/gpu_codec.json" ;;
    ranks) run_ranks ;;
  esac
done

"$python" - "$results" "$out/gpu_check.json" <<'PYTHON' | tee -a "$log"
"""Puts the parts' fates and the machine's facts into one JSON, and says them."""
import json
import subprocess
import sys


def first_line(*command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else None


facts = {
    "device": first_line("nvidia-smi", "--query-gpu=name", "--format=csv,noheader"),
    "driver": first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
    "nvcc": first_line("nvcc", "--version"),
    "commit": first_line("git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"),
}
try:
    import torch

    facts |= {"torch": torch.__version__, "cuda": torch.version.cuda}
except ImportError:
    facts["torch"] = None
with open(sys.argv[1], encoding="utf-8") as lines:
    parts = [dict(zip(("part", "fate", "seconds"), line.rstrip("\n").split("\t"), strict=True)) for line in lines]
for part in parts:
    part["seconds"] = int(part["seconds"])
with open(sys.argv[2], "w", encoding="utf-8") as file:
    json.dump({**facts, "parts": parts}, file, indent=2)
    file.write("\n")
print("\n==> summary:", ", ".join(f"{key} {value}" for key, value in facts.items()))
for part in parts:
    print(f"{part['part']:<16}{part['fate']:<24}{part['seconds']:>5} s")
PYTHON
! cut -f 2 "$results" | grep -qvx passed
