#!/usr/bin/env bash
# The first minutes on a GPU: what it can do, whether Octavo is right on it, and how fast. See docs/gpu.md, "Measuring".
#   benchmarks/gpu/first_run.sh [--budget SECONDS] [--steps a,b] [--dry-run]
# Results go to $OUT (build/gpu by default). Octavo need not be installed: it is read from src.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../.." && pwd)"
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ -x "$root/.venv/bin/python" ] && PYTHON="$root/.venv/bin/python"
fi
export PYTHONPATH="$root/src:$root/tests/support${PYTHONPATH:+:$PYTHONPATH}"
export OUT="${OUT:-$root/build/gpu}"
exec "$PYTHON" "$here/first_run.py" "$@"
