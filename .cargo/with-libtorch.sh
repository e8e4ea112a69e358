#!/bin/sh
# cargo runs every binary and test through this, so that they find libtorch without global settings.
d=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)/.libtorch
LD_LIBRARY_PATH="$d/torch/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" exec "$@"
