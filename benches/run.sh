#!/usr/bin/env bash
# Measures the promises of speed as root; arguments name some of them (p1 to p11, p13, p15, restart).
# FIRKIN_BENCH_STORAGE=plain|btrfs chooses the storage driver of their servers (p8 measures both).
# JSON lines go to target/bench/, with the commit they belong to; a table follows on the screen.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "bench: sandboxes need root" >&2; exit 1; }
target=$(uname -m)-unknown-linux-gnu
export FIRKIN_BIN=${FIRKIN_BIN:-$PWD/target/$target/release/firkin}
export FIRKIN_PYTHON=${FIRKIN_PYTHON:-$PWD/target/test-env/venv/bin/python}
[ -x "$FIRKIN_BIN" ] || { echo "bench: no $FIRKIN_BIN: run make build" >&2; exit 1; }
mkdir -p target/bench
out=target/bench/$(git rev-parse --short HEAD 2>/dev/null || echo unknown)${FIRKIN_BENCH_STORAGE:+-$FIRKIN_BENCH_STORAGE}.jsonl
# The same flags as the server's build, so that the crate is compiled once for both.
RUSTFLAGS="-C target-feature=+crt-static" cargo bench --quiet --target "$target" --bench promises -- "$@" | tee "$out.new"
grep '^{' "$out.new" >"$out"
rm "$out.new"
