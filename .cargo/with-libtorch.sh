#!/bin/sh
# cargo runs every binary and test through this, so that they find libtorch without global settings.
#
# LIBTORCH is what cargo built against: the user's, or .libtorch/link. The latter shows the libraries by symlinks, and a
# library finds its neighbours ($ORIGIN) only from where it really lies; so the symlink is followed.
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
library=$(readlink -f -- "${LIBTORCH_LIB:-${LIBTORCH:-$root/.libtorch/link}}/lib/libtorch_cpu.so")
if [ -f "$library" ]; then
    LD_LIBRARY_PATH=${library%/*}${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    export LD_LIBRARY_PATH
fi
# Threads that spin for milliseconds after each operator take the processors from those that work.
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-10000}"
exec "$@"
