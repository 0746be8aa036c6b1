#!/usr/bin/env bash
# usage: need.sh PACKAGE...     Installs Debian packages where we may; else says what to install.
set -euo pipefail
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
else
    echo "semipd needs the packages: $*   (sudo apt-get install $*)" >&2
    exit 1
fi
