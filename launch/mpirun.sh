#!/usr/bin/env bash
# Starts a training script with mpirun, Open MPI's or MPICH's, once on any node.
#
#   launch/mpirun.sh --ranks 4 -- train.py ARGUMENTS...
#   launch/mpirun.sh --ranks 16 --hosts node01:8,node02:8 -- train.py ARGUMENTS...
#
#   --ranks N              ranks on all nodes together
#   --hosts NAME:N,...     nodes and the ranks on each (default: this node alone)
#   MASTER_ADDR            address of the first node as the others reach it (default: its name in --hosts)
#   MASTER_PORT            a port that is free there (default: drawn from 20000 to 29999)
#   MPIRUN                 the command (default: mpirun)
#   PYTHON                 the interpreter, under the same path on all nodes (default: python)
#
# With Open MPI, PYTHONPATH and variables that begin with OMP_, GLOO_, NCCL_, TORCH_ or LGRECO_ go to all nodes, with Hydra
# the whole environment.
set -euo pipefail

die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

ranks='' hosts=''
while [[ $# -gt 0 && $1 != -- ]]; do
  [[ $# -gt 1 ]] || die "$1 must have a value"
  case $1 in
    --ranks) ranks=$2 ;;
    --hosts) hosts=$2 ;;
    *) die "unknown option $1; known are --ranks and --hosts, then -- and the script" ;;
  esac
  shift 2
done
[[ ${1:-} == -- && $# -gt 1 ]] || die 'the script must come after --'
shift
[[ $ranks =~ ^[1-9][0-9]*$ ]] || die "--ranks must be a number from 1, got '$ranks'"
mpirun=${MPIRUN:-mpirun}
command -v "$mpirun" >/dev/null || die "found no $mpirun; on Debian: apt-get install openmpi-bin (or mpich)"

python=${PYTHON:-python}
"$python" -c 'import sys; from importlib.util import find_spec; sys.exit(find_spec("torch") is None)' ||
  die "$python has no torch; activate the environment that has it (such as: . .venv/bin/activate), or set PYTHON"
python=$(command -v "$python") # the other nodes' shells know nothing of this one's path

first=${hosts%%,*}
export MASTER_ADDR=${MASTER_ADDR:-${first%%:*}}
export MASTER_ADDR=${MASTER_ADDR:-127.0.0.1} MASTER_PORT=${MASTER_PORT:-$((20000 + RANDOM % 10000))}
version=$("$mpirun" --version 2>&1)
case $version in
  *'Open MPI'* | *OpenRTE* | *PRRTE*)
    # Not bound to one core each: lgreco's threads work beside backward.
    flags=(-np "$ranks" --bind-to none -x MASTER_ADDR -x MASTER_PORT)
    [[ -z $hosts ]] || flags+=(--host "$hosts")
    # To other nodes Hydra hands on the whole environment, Open MPI what it is told to.
    while read -r name; do
      flags+=(-x "$name")
    done < <(compgen -e | grep -E '^(PYTHONPATH|(OMP|GLOO|NCCL|TORCH|LGRECO)_.*)$')
    ;;
  *HYDRA* | *Intel*)
    flags=(-n "$ranks" -genv MASTER_ADDR "$MASTER_ADDR" -genv MASTER_PORT "$MASTER_PORT")
    [[ -z $hosts ]] || flags+=(-hosts "$hosts")
    ;;
  *) die "$mpirun must be Open MPI's or Hydra's (MPICH, Intel MPI), it says: ${version%%$'\n'*}" ;;
esac
exec "$mpirun" "${flags[@]}" "$python" "$@"
