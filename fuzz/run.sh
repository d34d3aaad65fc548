#!/usr/bin/env bash
# Runs fuzz targets one after the other: `fuzz/run.sh [target...]`, all without a name. Each gets
# FUZZ_SECONDS (600); what they find new stays in target/fuzz-corpus, a crash in target/fuzz-found.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${FUZZ_SECONDS:-600}
target=$(cd .. && pwd)/target
[ $# -gt 0 ] || set -- $(sed -n 's|^path = "targets/\(.*\)\.rs"|\1|p' Cargo.toml)

# The coverage counters are a nightly flag; the pinned toolchain takes it when told so.
export RUSTC_BOOTSTRAP=1
# All of them at once: the crate below them is then compiled once.
cargo fuzz build --fuzz-dir . --sanitizer none --target-dir "$target/fuzz"
failed=()
for name in "$@"; do
    program=$(echo "$target"/fuzz/*/release/"$name")
    mkdir -p "$target/fuzz-corpus/$name" "$target/fuzz-found/$name"
    echo "== $name, $seconds s"
    nice -n 19 "$program" "$target/fuzz-corpus/$name" "corpus/$name" \
        -max_total_time="$seconds" -max_len=8192 -timeout=10 -rss_limit_mb=2048 \
        -artifact_prefix="$target/fuzz-found/$name/" -print_final_stats=1 -verbosity=1 \
        > "$target/fuzz-found/$name.log" 2>&1 || failed+=("$name")
    grep -E '^(Done|stat::number_of_executed_units|SUMMARY)|DONE  ' "$target/fuzz-found/$name.log" || true
done
[ ${#failed[@]} -eq 0 ] || { echo "findings in: ${failed[*]}; see target/fuzz-found"; exit 1; }
