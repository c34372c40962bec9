#!/usr/bin/env bash
# Sets up .venv, installs lgreco and trains a small model on real text, dense and compressed side by side.
# Arguments go to launch/train.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/environment.sh

prepare demo
# Two ranks share the machine; more threads each would only get into each other's way.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec torchrun --standalone --nproc-per-node 2 launch/train.py --config configs/quickstart.yaml "$@"
