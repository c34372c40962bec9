#!/bin/sh
# ssh as mpirun calls it (ssh OPTIONS HOST COMMAND...), to a host that is this machine under another name. As over ssh,
# nothing of the caller's environment is there.
while [ "${1#-}" != "$1" ]; do shift; done
name=$1
shift
exec env -i HOME="$HOME" PATH=/usr/bin:/bin unshare --user --map-root-user --uts sh -c "hostname $name && $*"
