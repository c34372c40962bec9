#!/usr/bin/env bash
# Sets up .venv, builds, runs the C++ tests (ctest) and the Python tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/environment.sh
. launch/googletest.sh
. launch/cluster_programs.sh

export LGRECO_TESTS=1
find_googletest
install_cluster_programs
prepare test,frameworks

failed=()
ctest --test-dir "$LGRECO_BUILD_DIR" --no-tests=error --output-on-failure --parallel 2 || failed+=(ctest)
python -m pytest "$@" || failed+=(pytest)
[[ ${#failed[@]} == 0 ]] || die "failed: ${failed[*]}"
