# shellcheck shell=bash
# What the tests of launchers and of the MPI transport start: both MPIs and Slurm, from Debian's packages. Sourced.

# Only root can install; without them those tests are skipped, each with its reason.
install_cluster_programs() {
  local packages=() program
  declare -A package_of=(
    [mpicxx.openmpi]='libopenmpi-dev openmpi-bin' [mpirun.mpich]=mpich [slurmctld]=slurmctld [slurmd]=slurmd
    [srun]=slurm-client [munged]=munge
  )
  for program in "${!package_of[@]}"; do
    # shellcheck disable=SC2206  # two packages are two words
    PATH=$PATH:/usr/sbin command -v "$program" >/dev/null || packages+=(${package_of[$program]})
  done
  [[ ${#packages[@]} -gt 0 ]] || return 0
  if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
    say "some tests of launchers will be skipped: on Debian, apt-get install ${packages[*]}"
    return 0
  fi
  say "installing ${packages[*]}"
  apt-get --quiet update &&
    DEBIAN_FRONTEND=noninteractive apt-get --quiet --yes install --no-install-recommends "${packages[@]}" ||
    say "they could not be installed; some tests of launchers will be skipped"
}
