#!/usr/bin/env bash
# Runs buf, which lints the protobuf files and guards the API against breaking changes. Comes from the npm registry.
set -euo pipefail
version=1.75.0
root=$(cd "$(dirname "$0")/.." && pwd)
cache=$root/.ci/cache/buf-$version
if [ ! -x "$cache/node_modules/.bin/buf" ]; then
    command -v npm >/dev/null || bash "$root/scripts/need.sh" npm
    npm install --silent --no-audit --no-fund --prefix "$cache" "@bufbuild/buf@$version" >&2
fi
cd "$root"
exec "$cache/node_modules/.bin/buf" "$@"
