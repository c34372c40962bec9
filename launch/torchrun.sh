#!/usr/bin/env bash
# Starts a training script with torchrun, on this node or as one of several; on each node the same command.
#
#   launch/torchrun.sh --per-node 2 -- train.py ARGUMENTS...
#   launch/torchrun.sh --nodes 4 --per-node 8 --head node01:29400 --restarts 3 -- train.py ARGUMENTS...
#
#   --nodes N|MIN:MAX   how many nodes take part (default 1)
#   --per-node N        ranks on each node
#   --head HOST:PORT    where the nodes meet: one of them, and a port that is free there; needed from two nodes on
#   --job NAME          tells jobs apart that meet at one place (default lgreco)
#   --restarts N        how often all ranks are started again after one was lost (default 0); the script must then go
#                       on from its newest checkpoint by itself
#   PYTHON              the interpreter (default: python)
set -euo pipefail

die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

nodes=1 per_node='' head='' job=lgreco restarts=0
while [[ $# -gt 0 && $1 != -- ]]; do
  [[ $# -gt 1 ]] || die "$1 must have a value"
  case $1 in
    --nodes) nodes=$2 ;;
    --per-node) per_node=$2 ;;
    --head) head=$2 ;;
    --job) job=$2 ;;
    --restarts) restarts=$2 ;;
    *) die "unknown option $1; known are --nodes, --per-node, --head, --job, --restarts, then -- and the script" ;;
  esac
  shift 2
done
[[ ${1:-} == -- && $# -gt 1 ]] || die 'the script must come after --'
shift
[[ $per_node =~ ^[1-9][0-9]*$ ]] || die "--per-node must be a number of ranks from 1, got '$per_node'"
[[ $nodes =~ ^[1-9][0-9]*(:[1-9][0-9]*)?$ ]] || die "--nodes must be N or MIN:MAX, got '$nodes'"
[[ $restarts =~ ^[0-9]+$ ]] || die "--restarts must be a number from 0, got '$restarts'"
if [[ $nodes == 1 && -z $head ]]; then
  meeting=(--standalone)
else
  [[ $head =~ ^.+:[0-9]+$ ]] || die "--head must be HOST:PORT where the $nodes nodes meet, got '$head'"
  meeting=(--nnodes "$nodes" --rdzv-backend c10d --rdzv-endpoint "$head" --rdzv-id "$job")
fi
python=${PYTHON:-python}
"$python" -c 'import sys; from importlib.util import find_spec; sys.exit(find_spec("torch") is None)' ||
  die "$python has no torch; activate the environment that has it (such as: . .venv/bin/activate), or set PYTHON"
# A store of its own for every restart: in a shared one ranks may read the addresses of those that died (torch 2.15).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec "$python" -m torch.distributed.run "${meeting[@]}" --nproc-per-node "$per_node" --max-restarts "$restarts" "$@"
