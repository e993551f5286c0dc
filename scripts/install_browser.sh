#!/usr/bin/env bash
# Puts Debian's Chromium where the report's tests look for it. Where it cannot, they are skipped.
set -euo pipefail

if [ -x /usr/bin/chromium ]; then
  exit 0
fi
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "no /usr/bin/chromium, and no right to install it: the report's browser tests are skipped"
  exit 0
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null
