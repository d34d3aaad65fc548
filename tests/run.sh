#!/usr/bin/env bash
# Runs the tests: `tests/run.sh unit|sdk|all|soak`. The last line counts them.
set -euo pipefail
cd "$(dirname "$0")/.."
exec target/test-env/venv/bin/python tests/run.py "$@"
