#!/usr/bin/env bash
# Formatter, linter and type checker for Python, clang-format for C++ and CUDA. `launch/check.sh --fix` repairs what it can.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/environment.sh

case ${1:-} in
  '') ruff_format=(--check --diff) ruff_check=() clang_format=(--dry-run -Werror) ;;
  --fix) ruff_format=() ruff_check=(--fix) clang_format=(-i) ;;
  *) die "the only argument is --fix, got $1" ;;
esac
prepare dev

failed=()
ruff format "${ruff_format[@]}" . || failed+=('ruff format')
ruff check "${ruff_check[@]}" . || failed+=('ruff check')
mypy || failed+=(mypy)
mapfile -d '' sources < <(git ls-files -z --cached --others --exclude-standard '*.h' '*.cpp' '*.cu')
clang-format "${clang_format[@]}" "${sources[@]}" || failed+=(clang-format)
for script in .ci/run launch/*.sh; do
  bash -n "$script" || failed+=("$script")
done
[[ ${#failed[@]} == 0 ]] || die "failed: ${failed[*]}; launch/check.sh --fix repairs formatting"
say "all checks passed"
