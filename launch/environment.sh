# shellcheck shell=bash
# The virtual environment that the launch scripts share: made once, brought up to date when something changed. Sourced.
#
#   prepare EXTRAS  leaves .venv on PATH, with extras of pyproject.toml (demo; test,frameworks; dev) and lgreco built in
#                   place
#   PYTHON          the interpreter that a new environment is made with (default: python3)

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$repository/.venv

say() { printf '==> %s\n' "$*" >&2; }
die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

prepare() {
  # Two scripts started together must not install into one environment.
  local lock
  mkdir -p "$repository/build"
  exec {lock}>"$repository/build/environment.lock"
  flock "$lock"
  make_environment
  check_compiler
  install_packages "$1"
  build_in_place
  exec {lock}>&-
}

make_environment() {
  local python=${PYTHON:-python3}
  if [[ -e $venv ]] && ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
    die "$venv is there but its Python does not work; remove it and run this again"
  elif [[ ! -e $venv ]]; then
    command -v "$python" >/dev/null || die "found no $python; install Python 3.10 or newer, or set PYTHON to its path"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
      die "lgreco needs Python 3.10 or newer, $python is $("$python" -V); set PYTHON to a newer one"
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
      die "$python cannot make virtual environments; on Debian: apt-get install python3-venv"
    say "making a virtual environment in $venv"
    "$python" -m venv "$venv"
  elif [[ -n ${PYTHON:-} && $(version_of "$PYTHON") != $(version_of "$venv/bin/python") ]]; then
    die "PYTHON is $(version_of "$PYTHON") but $venv has $(version_of "$venv/bin/python"); remove it, or unset PYTHON"
  fi
  export VIRTUAL_ENV=$venv PATH=$venv/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1
}

version_of() { "$1" -c 'import platform; print(platform.python_version())'; }

check_compiler() {
  local compiler=${CXX:-g++} headers
  command -v "$compiler" >/dev/null || die "found no C++ compiler ($compiler); on Debian: apt-get install g++"
  echo 'int main() {}' | "$compiler" -std=c++20 -fsyntax-only -x c++ - 2>/dev/null ||
    die "$compiler does not know C++20 (-std=c++20); GCC 11 does, set CXX to a newer compiler"
  headers=$(python -c 'import sysconfig; print(sysconfig.get_path("include"))')
  [[ -e $headers/Python.h ]] || die "found no Python.h in $headers; on Debian: apt-get install python3-dev"
}

install_packages() {
  local extra=$1 stamp
  stamp=$(hash_of "$extra $(torch_version)" "$repository/pyproject.toml")
  [[ $(cat "$venv/lgreco-$extra.stamp" 2>/dev/null) != "$stamp" ]] || return 0
  say "installing what lgreco needs ($extra)"
  # The build takes the torch that is installed, so that comes first; one that is there is kept.
  pip install 'torch>=2.11' 'setuptools>=77' 'cmake>=3.26' ninja
  build_in_place
  pip install --no-build-isolation --editable "${repository}[$extra]"
  hash_of "$extra $(torch_version)" "$repository/pyproject.toml" >"$venv/lgreco-$extra.stamp"
}

build_in_place() {
  local stamp sources
  set_build_dir
  mapfile -d '' sources < <(find "$repository"/{CMakeLists.txt,setup.py,csrc,tests/cpp} -type f -print0 | sort -z)
  stamp=$(hash_of "$LGRECO_BUILD_DIR $(env | grep -E '^(LGRECO_|CXX|CUDACXX)' | sort)" "${sources[@]}")
  if [[ $(cat "$venv/lgreco-build.stamp" 2>/dev/null) == "$stamp" ]] && compgen -G "$repository/lgreco/_C.*.so" >/dev/null; then
    return 0
  fi
  say "building lgreco in $LGRECO_BUILD_DIR"
  (cd "$repository" && python setup.py --quiet build_ext --inplace)
  echo "$stamp" >"$venv/lgreco-build.stamp"
}

# Named after torch and Python, as setup.py does by default.
set_build_dir() {
  LGRECO_BUILD_DIR=$repository/build/torch-$(torch_version)-$(python -c 'import sys; print(sys.implementation.cache_tag)')
  export LGRECO_BUILD_DIR
}

# Read from torch's version.py: importing torch takes seconds.
torch_version() {
  python - <<'PYTHON'
import importlib.util, pathlib, runpy
spec = importlib.util.find_spec("torch")
print(runpy.run_path(str(pathlib.Path(spec.origin).with_name("version.py")))["__version__"] if spec else "none")
PYTHON
}

# hash_of TEXT FILE...
hash_of() {
  local text=$1
  shift
  { echo "$text"; cat "$@"; } | sha256sum | cut -d ' ' -f 1
}
