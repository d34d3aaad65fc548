"""`firkin sandbox list|create|logs|pause|resume|kill`, and what it says when it cannot."""

import json
import os
import re
import subprocess
import threading
import uuid

from command import SECONDS, runner
from e2b import Sandbox


def test_create_list_and_kill(firkin):
    label = f"mark={uuid.uuid4()} &=%"
    made = firkin("create", "base", "--timeout", "120", "--metadata", label, "--env", "A=b=c")
    assert made.returncode == 0, made.stderr
    sandbox = made.stdout.strip()
    try:
        assert Sandbox.connect(sandbox).commands.run("echo $A").stdout == "b=c\n"
        listed = json.loads(firkin("list", "--json", "--metadata", label).stdout)
        assert [(entry["sandboxID"], entry["state"]) for entry in listed] == [(sandbox, "running")]
        head, row = firkin("list", "--metadata", label).stdout.splitlines()
        assert head.split() == ["SANDBOX", "TEMPLATE", "STATE", "STARTED", "ENDS", "CPU", "MEMORY", "METADATA"]
        assert row.split()[:3] == [sandbox, "base", "running"]
        for other in (["--metadata", "mark=other"], ["--metadata", label, "--state", "paused"]):
            nothing = firkin("list", *other)
            assert (nothing.returncode, nothing.stdout) == (0, ""), nothing
            assert "filters" in nothing.stderr
    finally:
        killed = firkin("kill", sandbox)
    assert (killed.returncode, killed.stdout) == (0, f"{sandbox}\n"), killed
    again = firkin("kill", sandbox)
    assert (again.returncode, again.stdout) == (1, ""), again
    assert sandbox in again.stderr and "doesn't exist" in again.stderr


def test_kill_all_that_fit(cli, shared):
    label = f"batch={uuid.uuid4()}"
    made = {cli("create", "-m", label).stdout.strip() for _ in range(3)}
    assert len(json.loads(cli("list", "--json", "--limit", "2", "--metadata", label).stdout)) == 2
    killed = cli("kill", "--all", "--metadata", label)
    assert (killed.returncode, set(killed.stdout.split())) == (0, made), killed
    assert shared.is_running()
    assert cli("kill").returncode == 2
    assert cli("kill", shared.sandbox_id, "--metadata", label).returncode == 2
    assert shared.is_running()


def test_logs(firkin, shared):
    process = shared.commands.run("true", background=True)
    process.wait()
    logs = firkin("logs", shared.sandbox_id)
    assert logs.returncode == 0, logs
    assert re.search(rf"^\S+Z INFO +process start\b.* pid={process.pid}$", logs.stdout, re.M), logs.stdout
    entries = [json.loads(line) for line in firkin("logs", "--json", shared.sandbox_id).stdout.splitlines()]
    assert all(entry["timestamp"] and entry["level"] for entry in entries)
    assert len(firkin("logs", "-n", "2", shared.sandbox_id).stdout.splitlines()) == 2
    assert firkin("logs", "--level", "error", shared.sandbox_id).stdout == ""


def test_followed_logs_show_each_line_once_and_end_with_the_sandbox(cli, sandbox):
    following = subprocess.Popen(
        [os.environ["FIRKIN_BIN"], "sandbox", "logs", "-f", sandbox.sandbox_id],
        env=cli.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )
    timer = threading.Timer(SECONDS, following.kill)
    timer.start()
    try:
        lines = []
        for _ in range(3):
            processes = [sandbox.commands.run("true", background=True) for _ in range(3)]
            for process in processes:
                process.wait()
            ends = {process.pid for process in processes}
            # Waits for the lines of these before the next ones: lines come over several questions.
            while ends:
                lines.append(following.stdout.readline())
                assert lines[-1], "".join(lines)
                if match := re.search(r"process end .* pid=(\d+)", lines[-1]):
                    ends.discard(int(match[1]))
        sandbox.kill()
        rest, notes = following.communicate(timeout=SECONDS)
        lines += rest.splitlines(keepends=True)
        for event in ("process start", "process end"):
            pids = [match[1] for line in lines if event in line and (match := re.search(r" pid=(\d+)", line))]
            assert len(pids) == len(set(pids)) == 9, "".join(lines)
        assert following.returncode == 0 and "has ended" in notes
    finally:
        timer.cancel()
        following.kill()
        following.wait()


def test_what_is_wrong_is_said_with_what_to_do(cli, shared):
    nobody = cli("list", "--api-url", "http://127.0.0.1:1")
    assert nobody.returncode == 1 and "firkin serve" in nobody.stderr and "http://127.0.0.1:1" in nobody.stderr
    keyless = cli("list", changed={"E2B_API_KEY": ""})
    assert keyless.returncode == 1 and "firkin key create" in keyless.stderr
    stranger = cli("list", "--api-key", "e2b_" + "0" * 40)
    assert stranger.returncode == 1 and "firkin key create" in stranger.stderr
    missing = cli("logs", "i00000000000000000000")
    assert missing.returncode == 1 and "doesn't exist" in missing.stderr
    assert "NAME=VALUE" in cli("create", "--metadata", "x").stderr
    assert cli("create", "--timeout", "0").returncode == 2
    template = cli("create", "no-such-template")
    assert template.returncode == 1 and "no-such-template" in template.stderr
    assert cli("list", changed={"SSL_CERT_FILE": "/nowhere"}).returncode == 0, "http needs no authority"


def test_a_certificate_is_believed_by_file_only(by_name):
    run = runner({name: value for name, value in by_name.items() if name != "SSL_CERT_FILE"})
    refused = run("list")
    assert refused.returncode == 1 and "--ca-file" in refused.stderr and "firkin ca" in refused.stderr, refused
    assert run("list", "--ca-file", by_name["NODE_EXTRA_CA_CERTS"]).returncode == 0
    plain = run("list", "--api-url", os.environ["E2B_API_URL"].replace("http://", "https://"))
    assert plain.returncode == 1, plain


def test_a_reader_that_goes_is_no_error(cli, shared):
    command = '"$FIRKIN_BIN" sandbox list --json | true; echo ${PIPESTATUS[0]}'
    done = subprocess.run(["bash", "-c", command], env=cli.environment, text=True, capture_output=True, timeout=SECONDS)
    assert done.stdout.strip() in ("0", "141") and done.stderr == "", done


def test_pause_and_resume(firkin):
    label = f"rest={uuid.uuid4()}"
    made = [firkin("create", "-m", label).stdout.strip() for _ in range(2)]

    def states():
        return {entry["state"] for entry in json.loads(firkin("list", "--json", "--metadata", label).stdout)}

    try:
        Sandbox.connect(made[0]).commands.run("sleep 600", background=True)
        paused = firkin("pause", *made)
        assert (paused.returncode, paused.stdout.split()) == (0, made), paused
        assert states() == {"paused"}
        assert len(firkin("list", "--state", "paused", "--metadata", label).stdout.splitlines()) == 3
        again = firkin("pause", *made)
        assert again.returncode == 1 and again.stdout == "" and made[1] in again.stderr, again
        resumed = firkin("resume", "--timeout", "60", *made)
        assert (resumed.returncode, resumed.stdout.split()) == (0, made), resumed
        assert states() == {"running"}
        assert firkin("exec", made[0], "--", "pgrep", "-x", "sleep").returncode == 0, "processes go on"
    finally:
        firkin("kill", "--all", "--metadata", label)


def test_snapshot(cli, shared):
    name = f"cli-{uuid.uuid4().hex[:12]}"
    mark = str(uuid.uuid4())
    shared.files.write("/home/user/mark", mark)
    made = cli("snapshot", shared.sandbox_id, "--name", f"{name}:first")
    assert made.returncode == 0 and made.stdout.strip().endswith(f"/{name}:first"), made
    snapshot = made.stdout.strip()
    try:
        copy = cli("create", snapshot).stdout.strip()
        assert cli("exec", copy, "--", "cat", "/home/user/mark").stdout == mark
        assert cli("kill", copy).returncode == 0
    finally:
        Sandbox.delete_snapshot(snapshot)
    assert cli("create", snapshot).returncode == 1
    assert "doesn't exist" in cli("snapshot", "i00000000000000000000").stderr
