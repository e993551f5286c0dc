#!/usr/bin/env bash
# Puts what some tests drive where they look for it: Debian's Chromium for the report's pages, fish
# and zsh for their completion. Where it cannot, those tests are skipped.
set -euo pipefail

missing=()
for program in chromium fish zsh; do
  command -v "$program" >/dev/null || missing+=("$program")
done
if [ "${#missing[@]}" -eq 0 ]; then
  exit 0
fi
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "no ${missing[*]}, and no right to install: the tests that need them are skipped"
  exit 0
fi
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; }; then
  echo "${missing[*]} could not be installed: the tests that need them are skipped"
fi
