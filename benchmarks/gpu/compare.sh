#!/usr/bin/env bash
# Octavo and its peers on the same prompts in one run: medians and ratios. See docs/gpu.md, "Measuring".
#   benchmarks/gpu/compare.sh [--contenders a,b] [--workloads 1:128:128,64:512:128] [--rounds N] [--layers N] [--dry-run]
# The result goes to $OUT (build/gpu by default). Octavo need not be installed: it is read from src.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../.." && pwd)"
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ -x "$root/.venv/bin/python" ] && PYTHON="$root/.venv/bin/python"
fi
export PYTHONPATH="$root/src:$root/tests/support${PYTHONPATH:+:$PYTHONPATH}"
export OUT="${OUT:-$root/build/gpu}"
exec "$PYTHON" "$here/compare.py" "$@"
