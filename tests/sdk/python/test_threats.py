"""Rows of the threat model that are seen from outside, each with its allowed twin first."""

import json
import os
import pathlib
import socket
import subprocess
import urllib.parse

import pytest

from e2b import CommandExitException, Sandbox

DATA = pathlib.Path(os.environ.get("FIRKIN_TEST_DATA_DIR", "/nowhere"))


def status_of(process):
    return dict(
        line.split(":\t", 1) for line in pathlib.Path(f"/proc/{process}/status").read_text().splitlines() if ":\t" in line
    )


def gateway():
    """The process that listens on the server's port."""
    listening = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout
    port = os.environ["E2B_API_URL"].rsplit(":", 1)[1]
    line = next(line for line in listening.splitlines() if f"127.0.0.1:{port} " in line)
    return int(line.split("pid=")[1].split(",")[0])


def resident_mib(process):
    return int(status_of(process)["VmRSS"].split()[0]) // 1024


def test_privilege_row_the_gateway_holds_no_root_and_no_capability(sandbox):
    assert sandbox.commands.run("echo works").stdout == "works\n"
    status = status_of(gateway())
    assert "0" not in status["Uid"].split() and "0" not in status["Gid"].split(), status["Uid"]
    assert status["Groups"].split() in ([], status["Gid"].split()[:1])
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0, (name, status[name])
    assert status["NoNewPrivs"] == "1"


def test_host_disk_row_a_setuid_file_planted_inside_gives_nothing_outside(sandbox):
    sandbox.commands.run("sudo cp /bin/bash /home/user/rootbash && sudo chmod 4755 /home/user/rootbash")
    inside = sandbox.commands.run("/home/user/rootbash -p -c 'id -u'")
    assert inside.stdout == "0\n"
    planted = [path for path in (DATA / "machines" / sandbox.sandbox_id).rglob("rootbash")]
    assert planted and planted[0].stat().st_uid == 0 and planted[0].stat().st_mode & 0o4000
    assert DATA.stat().st_mode & 0o777 == 0o700
    # A shell in between: setpriv itself still has root's capabilities when it executes.
    stranger = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/bin/sh", "-c"]
    assert subprocess.run([*stranger, "id -u"], capture_output=True, text=True).stdout == "65534\n"
    refused = subprocess.run([*stranger, f"{planted[0]} -p -c 'id -u'"], capture_output=True, text=True)
    assert refused.returncode != 0 and "ermission denied" in refused.stderr
    options = subprocess.run(
        ["findmnt", "-no", "OPTIONS", "-T", str(planted[0])], capture_output=True, text=True, check=True
    ).stdout
    assert "nosuid" in options and "nodev" in options, options
    # Even a descriptor that got out of the directory gives no root: the mount ignores the bit.
    with open(planted[0], "rb") as descriptor:
        path = f"/proc/self/fd/{descriptor.fileno()}"
        leaked = subprocess.run(
            [*stranger, f"{path} -p -c 'id -u'"], capture_output=True, text=True, pass_fds=[descriptor.fileno()]
        )
    assert leaked.stdout != "0\n", leaked


def test_host_disk_row_secrets_of_the_host_are_invisible(sandbox):
    assert sandbox.commands.run("test -r /usr/bin/env && echo readable").stdout == "readable\n"
    secret = pathlib.Path("/usr/share/firkin-planted-secret")
    local = pathlib.Path("/usr/local/firkin-planted")
    secret.write_text("secret")
    secret.chmod(0o600)
    local.write_text("local")
    try:
        with Sandbox.create(timeout=60) as fresh:
            for path in (secret, local):
                with pytest.raises(CommandExitException):
                    fresh.commands.run(f"sudo cat {path}")
            for path in ("/root/.ssh", "/var/lib/firkin", "/etc/shadow-", "/etc/ssh", "/var/log/apt/history.log"):
                with pytest.raises(CommandExitException):
                    fresh.commands.run(f"sudo test -e {path}")
    finally:
        secret.unlink()
        local.unlink()


def test_exhaustion_row_a_greedy_process_dies_alone(sandbox):
    small = "python3 -c \"b = bytearray(64 << 20); print(len(b))\""
    assert sandbox.commands.run(small).stdout == f"{64 << 20}\n"
    with pytest.raises(CommandExitException) as error:
        sandbox.commands.run("exec python3 -c \"b = bytearray(4 << 30)\nfor i in range(0, len(b), 4096): b[i] = 1\"", timeout=60)
    assert (error.value.exit_code, error.value.error) == (-1, "signal: killed")
    assert sandbox.commands.run("echo alive").stdout == "alive\n"
    assert sandbox.is_running()


def test_exhaustion_row_a_fork_bomb_stays_inside(sandbox):
    with Sandbox.create(timeout=60) as neighbour:
        bomb = sandbox.commands.run("bomb() { bomb | bomb & }; bomb; sleep 5", background=True)
        for _ in range(10):
            assert neighbour.commands.run("echo fine", timeout=10).stdout == "fine\n"
        assert sandbox.is_running()
        assert sandbox.files.exists("/home/user")
        bomb.kill()
    assert sandbox.kill()


def start_and_never_read(sandbox, command):
    """A `Process.Start` whose answer nobody reads, on a connection of its own."""
    message = json.dumps({"process": {"cmd": "/bin/sh", "args": ["-c", command]}, "stdin": False}).encode()
    body = b"\0" + len(message).to_bytes(4, "big") + message
    url = urllib.parse.urlsplit(os.environ["E2B_SANDBOX_URL"])
    connection = socket.create_connection((url.hostname, url.port), timeout=30)
    headers = {
        "Host": "localhost",
        "E2b-Sandbox-Id": sandbox.sandbox_id,
        "E2b-Sandbox-Port": "49983",
        "X-Access-Token": sandbox._envd_access_token,
        "Content-Type": "application/connect+json",
        "Content-Length": str(len(body)),
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    connection.sendall(f"POST /process.Process/Start HTTP/1.1\r\n{lines}\r\n".encode() + body)
    return connection


def test_exhaustion_row_output_that_nobody_reads_costs_no_memory(sandbox):
    read = sandbox.commands.run("head -c 20000000 /dev/zero | tr '\\0' x")
    assert len(read.stdout) == 20_000_000
    guest = int(subprocess.run(
        ["pgrep", "-o", "-f", f"^firkin-guest {sandbox.sandbox_id}"], capture_output=True, text=True, check=True
    ).stdout)
    before = resident_mib(gateway()), resident_mib(guest)
    connections = [start_and_never_read(sandbox, "exec yes") for _ in range(4)]
    try:
        for connection in connections:
            assert connection.recv(12) == b"HTTP/1.1 200"
        # Long enough for gigabytes, if somebody took them in.
        for _ in range(20):
            assert sandbox.commands.run("echo live; sleep 0.1", timeout=10).stdout == "live\n"
        after = resident_mib(gateway()), resident_mib(guest)
        assert after[0] - before[0] < 64 and after[1] - before[1] < 64, (before, after)
    finally:
        for connection in connections:
            connection.close()


def test_exhaustion_row_one_sandbox_cannot_take_all_terminals(sandbox):
    take = "python3 -c 'import os\nheld = 0\ntry:\n  while held < 2000: os.openpty(); held += 1\nexcept OSError: pass\nprint(held)'"
    held = int(sandbox.commands.run(f"ulimit -n 8000 && {take}").stdout)
    assert 100 <= held <= 256, held
    with Sandbox.create(timeout=60) as neighbour:
        assert int(neighbour.commands.run("python3 -c 'import os; os.openpty(); print(1)'").stdout) == 1


def test_escape_row_the_kernel_is_out_of_reach(sandbox):
    assert sandbox.commands.run("sudo id -u").stdout == "0\n"
    for attempt in (
        "mount -t tmpfs none /mnt",
        "umount /proc/meminfo",
        "unshare -U true",
        "unshare -m true",
        "mknod /tmp/null c 1 3",
        "sh -c 'echo 1 > /proc/sys/kernel/panic'",
        "sh -c 'echo x > /proc/sysrq-trigger'",
        "dd if=/proc/kcore of=/dev/null count=1",
        "sh -c 'ls /dev/vda || ls /dev/sda'",
    ):
        with pytest.raises(CommandExitException):
            sandbox.commands.run(f"sudo {attempt}")
    assert sandbox.commands.run("sudo cat /proc/1/maps").stdout.find(str(DATA)) == -1
    assert str(DATA) not in sandbox.commands.run("cat /proc/self/mountinfo /proc/self/cgroup").stdout


def test_size_row_the_sandbox_sees_its_own_size(sandbox):
    info = sandbox.get_info()
    total = int(sandbox.commands.run("awk '/^MemTotal/ {print $2}' /proc/meminfo").stdout)
    assert total == info.memory_mb * 1024
    assert int(sandbox.commands.run("nproc").stdout) <= info.cpu_count
