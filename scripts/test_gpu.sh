#!/usr/bin/env bash
# The tests of the GPU back end, a process a file: on a fresh machine most of the time goes into compiling Triton's
# kernels, one core a process. What measures memory runs by itself. Arguments go to pytest.
#
#   PYTHON=python3 scripts/test_gpu.sh -k stress
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
failed=0

test_file() {
  local log code
  log=$(mktemp "$logs/XXXXXX")
  "$python" -m pytest -q -m gpu "$@" >"$log" 2>&1
  code=$?
  cat "$log"
  [ $code -eq 0 ] || [ $code -eq 5 ]  # 5: nothing in the file was asked for
}

test_file tests/gpu/test_memory.py "$@" || failed=1
children=()
for file in tests/gpu/test_*.py; do
  [ "$file" = tests/gpu/test_memory.py ] && continue
  test_file "$file" "$@" &
  children+=($!)
done
for child in "${children[@]}"; do wait "$child" || failed=1; done
exit $failed
