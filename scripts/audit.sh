#!/usr/bin/env bash
# Looks the pinned dependencies up among known vulnerabilities. One that is found ends with code 1;
# what cannot be looked up, for want of a network, is said and ends with code 0.
set -uo pipefail
cd "$(dirname "$0")/.."
BIN=${BIN:-.venv/bin}

if ! "$BIN/uv" pip install --quiet --python "$BIN/python" --constraint constraints.txt \
  --group audit; then
  echo "audit: skipped, pip-audit cannot be installed: no network?"
  exit 0
fi
# Nothing is installed and nothing resolved: the versions are those that the tests run on.
found=$("$BIN/pip-audit" --requirement "${1:-constraints.txt}" --no-deps --disable-pip \
  --progress-spinner off --timeout 15 2>&1)
code=$?
echo "$found"
if [ $code -ne 0 ] && ! grep -q "^Found [0-9]* known vulnerabilit" <<<"$found"; then
  echo "audit: skipped, the vulnerabilities cannot be looked up: no network?"
  exit 0
fi
if grep -q "could not be audited" <<<"$found"; then
  echo "audit: not all of them could be looked up: no network, or a mirror that does not tell?"
fi
exit $code
