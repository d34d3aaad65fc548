#!/usr/bin/env bash
# Installs what a fresh Debian 12 machine lacks for building and testing firkin: packages by apt,
# Python packages in a virtual environment, Node and the JS SDKs below target/test-env.
# Run again at will: what is there is left alone. `tests/setup.sh tools` leaves out the JS side.
set -euo pipefail
cd "$(dirname "$0")/.."
env_dir=$PWD/target/test-env
mkdir -p "$env_dir"

fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || fail "the tests make namespaces and mounts: run them as root"
command -v cargo >/dev/null || fail "no cargo: install Rust with rustup (rust-toolchain.toml names the version)"

need=()
have() { dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q '^install ok installed'; }
for package in build-essential ca-certificates curl git procps iproute2 ncurses-bin python3 python3-venv \
    busybox-static bubblewrap libnss-myhostname nginx-light btrfs-progs; do
    have "$package" || need+=("$package")
done
if [ ${#need[@]} -gt 0 ]; then
    echo "setup: apt-get install ${need[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${need[@]}" >/dev/null
fi

stamp() { # stamp NAME FILE...: true when NAME was made from these very files
    local sum
    sum=$(cat "${@:2}" | sha256sum)
    [ "$(cat "$env_dir/$1.stamp" 2>/dev/null)" = "$sum" ] && return 0
    printf '%s' "$sum" >"$env_dir/$1.stamp.new"
    return 1
}
stamped() { mv "$env_dir/$1.stamp.new" "$env_dir/$1.stamp"; }

python_environment() { # python_environment NAME REQUIREMENTS
    stamp "$1" "$2" && return
    echo "setup: Python environment $1"
    /usr/bin/python3 -m venv --clear "$env_dir/$1"
    "$env_dir/$1/bin/pip" install -q --disable-pip-version-check -r "$2"
    stamped "$1"
}
python_environment venv tests/sdk/python/requirements.txt

[ "${1:-all}" = tools ] && exit 0

# The older SDKs: the newest one's files in tests/sdk/python/methods/ run under each of them.
for version in 2.45 2.30; do
    python_environment "venv-$version" "tests/sdk/python/requirements-$version.txt"
done

node_fits() {
    "$1" -e 'const [a, b] = process.versions.node.split(".").map(Number); process.exit(a > 20 || (a === 20 && b >= 18) ? 0 : 1)' \
        2>/dev/null
}
if command -v node >/dev/null && node_fits node && command -v npm >/dev/null; then
    ln -sfn "$(command -v node)" "$env_dir/node-bin"
elif ! node_fits "$env_dir/node-bin"; then
    echo "setup: a node new enough for the SDKs"
    have npm || { apt-get update -qq; apt-get install -y -qq --no-install-recommends npm >/dev/null; }
    npm install --silent --no-package-lock --prefix "$env_dir/node" node@22.23.3
    ln -sfn "$env_dir/node/node_modules/node/bin/node" "$env_dir/node-bin"
    node_fits "$env_dir/node-bin" || fail "the node of the npm package does not run here"
fi

if ! stamp js tests/sdk/js/package.json; then
    echo "setup: JS SDKs"
    mkdir -p "$env_dir/js"
    cp tests/sdk/js/package.json "$env_dir/js/"
    npm install --silent --no-package-lock --no-audit --no-fund --prefix "$env_dir/js"
    stamped js
fi
