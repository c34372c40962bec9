# shellcheck shell=bash
# GoogleTest for the C++ tests, from the system or unpacked from Debian's package into build/, without root. Sourced.

# Leaves GTest_ROOT set where CMake would not find it by itself; after `prepare` or before, both work.
# shellcheck disable=SC2154  # repository comes from environment.sh
find_googletest() {
  local unpacked=$repository/build/googletest
  if [[ ! -e $unpacked/usr/include/gtest/gtest.h ]]; then
    if echo '#include <gtest/gtest.h>' | "${CXX:-g++}" -std=c++20 -fsyntax-only -x c++ - 2>/dev/null; then
      return 0
    fi
    say "unpacking Debian's libgtest-dev into $unpacked"
    rm -rf "$unpacked"
    mkdir -p "$unpacked"
    (cd "$unpacked" && download_googletest && dpkg-deb -x libgtest-dev_*.deb .) ||
      die "the C++ tests need GoogleTest; on Debian: apt-get install libgtest-dev"
  fi
  export GTest_ROOT=$unpacked/usr
}

download_googletest() {
  command -v apt-get >/dev/null || return 1
  apt-get --quiet download libgtest-dev && return 0
  # A fresh machine may have no package lists yet; only root can fetch them.
  [[ $(id -u) == 0 ]] && apt-get --quiet update && apt-get --quiet download libgtest-dev
}
