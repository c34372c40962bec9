#!/usr/bin/env bash
# The C++ tests under a sanitizer, in a build folder of their own.
#
#   launch/sanitize.sh thread    data races: the engine, between ranks that are threads
#   launch/sanitize.sh address   memory errors and undefined behaviour: the engine, plans, codecs and kernels
#
# A second argument is GoogleTest's filter, for example 'LaneFailures.*'.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/environment.sh
. launch/googletest.sh

case ${1:-} in
  thread) sanitizers=thread targets=(lgreco_engine_tests) ;;
  address) sanitizers=address,undefined targets=(lgreco_tests lgreco_engine_tests) ;;
  *) die "the first argument must be thread or address, got '${1:-}'" ;;
esac
find_googletest
prepare test

build_dir=$LGRECO_BUILD_DIR-$1
say "building in $build_dir"
cmake -S . -B "$build_dir" -G Ninja -DPython_EXECUTABLE="$(command -v python)" -DLGRECO_TESTS=1 -DLGRECO_CUDA=0 \
  -DLGRECO_SANITIZE="$sanitizers" -DCMAKE_MAKE_PROGRAM="$(command -v ninja)"
cmake --build "$build_dir" --target "${targets[@]}"

# torch's libraries are not instrumented, and what they allocate once stays until the end.
export TSAN_OPTIONS="halt_on_error=1 suppressions=$repository/tests/cpp/engine/thread_sanitizer.supp ${TSAN_OPTIONS:-}"
export ASAN_OPTIONS="detect_leaks=0 ${ASAN_OPTIONS:-}"
export UBSAN_OPTIONS="halt_on_error=1 print_stacktrace=1 ${UBSAN_OPTIONS:-}"
for target in "${targets[@]}"; do
  "$build_dir/$target" --gtest_filter="${2:-*}"
done
