"""How a process is started: as whom, where, with which environment, and what comes of bad commands."""

import base64
import contextlib
import os
import pathlib
import time

import proc
import pytest

from e2b import Sandbox
from guests import guest_of
from proc import command, refused_start, run, shell
from wire import Wire

INTERNAL = {"E2B_SANDBOX", "E2B_SANDBOX_ID", "E2B_TEMPLATE_ID", "E2B_EVENTS_ADDRESS"}


def row(text):
    return pytest.mark.row("process", text)


@pytest.fixture(scope="module")
def user(box):
    return Wire(box.sandbox, user="user")


@pytest.fixture(scope="module")
def root(box):
    return Wire(box.sandbox, user="root")


def env_of(wire, **options):
    """The environment of a process, as it is given to it."""
    said, _ = run(wire, command("/usr/bin/env", "-0", **options))
    return dict(entry.split("=", 1) for entry in said.split("\0") if entry)


@row("Without a Basic user a process runs as the default user, with one as that user.")
def test_the_user(box, user, root):
    assert run(box.wire, command("id", "-un"))[0] == "user\n"
    assert run(user, command("id", "-un"))[0] == "user\n"
    assert run(root, command("id", "-un"))[0] == "root\n"


@row("The password of the Basic user is ignored.")
def test_the_password_is_ignored(box):
    for password in ("", "anything", "a:b"):
        header = "Basic " + base64.b64encode(f"root:{password}".encode()).decode()
        assert run(box.wire, command("id", "-un"), {"Authorization": header})[0] == "root\n"


@row("An unknown user: unauthenticated `invalid username: 'x'`, 401 of a unary call, in the end frame of a stream.")
def test_an_unknown_user(box):
    stranger = Wire(box.sandbox, user="no-one")
    assert refused_start(stranger, command("true")) == ("unauthenticated", "invalid username: 'no-one'")
    assert proc.refused(stranger, "List", {}) == ("unauthenticated", "invalid username: 'no-one'")


@row("Groups are the user's primary one and all of its supplementary ones.")
def test_groups(box):
    box.sh("groupadd -f -g 7001 first; groupadd -f -g 7002 second; useradd -m -G first,second member || true")
    member = Wire(box.sandbox, user="member")
    assert set(run(member, command("id", "-Gn"))[0].split()) == {"member", "first", "second"}
    said, _ = run(member, shell("grep ^Gid: /proc/self/status; id -g; id -u; umask"))
    *gids, group, uid, mask = said.split()[1:]
    assert set(gids) == {group} and uid != "0" and mask == "0022"


@row("cwd absent or empty is the default workdir, or home without one.")
def test_no_cwd(user, root):
    for options in ({}, {"cwd": ""}):
        assert run(user, command("pwd", **options))[0] == "/home/user\n"
    assert run(root, command("pwd"))[0] in ("/root\n", "/home/user\n")


@row("cwd `~` and `~/x` are home and below it.")
def test_home_as_cwd(user, root):
    run(user, command("mkdir", "-p", "/home/user/x/y"))
    for cwd, place in (("~", "/home/user"), ("~/", "/home/user"), ("~/x/y", "/home/user/x/y")):
        assert run(user, command("pwd", cwd=cwd))[0] == place + "\n"
    assert run(root, command("pwd", cwd="~"))[0] == "/root\n"


@row("cwd `~other`: invalid_argument.")
def test_another_home_as_cwd(user):
    for cwd in ("~root", "~user/x", "~nobody"):
        assert refused_start(user, command("true", cwd=cwd))[0] == "invalid_argument"


@row("A relative cwd is joined to home.")
def test_a_relative_cwd(user, root):
    run(user, command("mkdir", "-p", "/home/user/x/y"))
    for cwd in ("x", "./x", "x/../x", "x/y/.."):
        assert run(user, command("pwd", "-P", cwd=cwd))[0] == "/home/user/x\n"
    assert refused_start(root, command("true", cwd="x/y")) == ("invalid_argument", "cwd '/root/x/y' does not exist")


@row("An absolute cwd is used as it is, uncleaned.")
def test_an_absolute_cwd(user):
    run(user, shell("ln -sfn /usr/lib /home/user/link"))
    assert run(user, command("pwd", "-P", cwd="/home/user/link/.."))[0] == "/usr\n"
    assert refused_start(user, command("true", cwd="/a/../b")) == ("invalid_argument", "cwd '/a/../b' does not exist")


@row("A missing cwd: invalid_argument `cwd '<p>' does not exist`.")
def test_a_missing_cwd(user):
    assert refused_start(user, command("true", cwd="/nowhere")) == ("invalid_argument", "cwd '/nowhere' does not exist")
    assert refused_start(user, command("true", cwd="~/nowhere")) == (
        "invalid_argument", "cwd '/home/user/nowhere' does not exist"
    )


@row("A cwd that is a file: invalid_argument `error starting process '...': fork/exec /bin/sh: not a directory`.")
def test_a_file_as_cwd(user):
    code, text = refused_start(user, command("true", cwd="/etc/hostname"))
    assert code == "invalid_argument"
    assert text.startswith("error starting process '") and text.endswith("': fork/exec /bin/sh: not a directory"), text


@row("A cwd closed to the user: invalid_argument `... permission denied`; root may.")
def test_a_closed_cwd(user, root):
    run(root, command("mkdir", "-pm", "700", "/srv/closed"))
    code, text = refused_start(user, command("true", cwd="/srv/closed"))
    assert (code, text.rpartition("': ")[2]) == ("invalid_argument", "fork/exec /bin/sh: permission denied")
    assert run(root, command("pwd", cwd="/srv/closed"))[0] == "/srv/closed\n"


@row("The environment is PATH, HOME, USER, LOGNAME and the sandbox's variables; nothing else of envd's own.")
def test_the_environment(box, user, root):
    found = env_of(user)
    # PWD and the like are a shell's.
    assert set(found) - {"PWD", "OLDPWD", "SHLVL", "_"} == {"PATH", "HOME", "USER", "LOGNAME"} | INTERNAL
    assert (found["HOME"], found["USER"], found["LOGNAME"]) == ("/home/user", "user", "user")
    assert {"/usr/bin", "/bin", "/usr/local/bin"} <= set(found["PATH"].split(":"))
    assert (found["E2B_SANDBOX"], found["E2B_SANDBOX_ID"]) == ("true", box.sandbox.sandbox_id)
    found = env_of(root)
    assert (found["HOME"], found["USER"], found["LOGNAME"]) == ("/root", "root", "root")


@row("The sandbox's variables beat HOME and PATH, the request's beat all, internal ones included.")
def test_layers_of_the_environment():
    given = {"HOME": "/tmp", "A": "sandbox", "B": "sandbox", "E2B_SANDBOX_ID": "forged", "EMPTY": ""}
    with Sandbox.create(timeout=60, envs=given) as sandbox:
        wire = Wire(sandbox)
        found = env_of(wire, envs={"B": "request", "USER": "request", "C": "a=b\nc", "E2B_TEMPLATE_ID": "request"})
        assert (found["HOME"], found["A"], found["B"], found["USER"]) == ("/tmp", "sandbox", "request", "request")
        assert (found["C"], found["EMPTY"], found["LOGNAME"]) == ("a=b\nc", "", "user")
        # Internal ones hold against the sandbox's own and not against the request's.
        assert (found["E2B_SANDBOX_ID"], found["E2B_TEMPLATE_ID"]) == (sandbox.sandbox_id, "request")
        assert env_of(wire)["B"] == "sandbox"


@row("The command is searched in the request's PATH.")
def test_the_path(user):
    run(user, shell("mkdir -p /home/user/bin; printf '#!/bin/sh\\necho mine' > /home/user/bin/mine; chmod +x /home/user/bin/mine"))
    assert run(user, command("mine"))[1]["exitCode"] == 127
    assert run(user, command("mine", envs={"PATH": "/home/user/bin:/usr/bin:/bin"}))[0] == "mine\n"


@row("oom_score_adj is 100: the kernel takes a process before envd.")
def test_the_oom_score(user, root):
    for wire in (user, root):
        assert run(wire, command("cat", "/proc/self/oom_score_adj"))[0] == "100\n"
    assert run(user, shell("cat /proc/self/oom_score_adj & wait"))[0] == "100\n"


@row("nice is 0 and ionice best-effort 4.")
def test_priorities(user):
    assert run(user, command("nice"))[0] == "0\n"
    said, _ = run(user, command("ionice"))
    assert said.strip() in ("best-effort: prio 4", "none: prio 4"), said


@row("The reported pid is the command's own.")
def test_the_pid(user):
    for message in (shell("echo $$"), command("bash", "-c", "exec sh -c 'echo $$'")):
        with proc.running(user, message) as process:
            messages, _ = process.rest()
            assert proc.output(messages) == b"%d\n" % process.pid


@row("An unknown command is exit code 127 with a text on stderr, not an error of the RPC.")
def test_an_unknown_command(user):
    for name in ("no-such-command", "/no/such/command", "./none", ""):
        messages, end = user.call(proc.START, command(name, "x"))
        assert end == {} and proc.ended(messages)["exitCode"] == 127
        assert name.encode() in proc.output(messages, "stderr") and b"No such file" in proc.output(messages, "stderr")


@row("What cannot be executed is exit code 126 with a text on stderr.")
def test_what_cannot_be_executed(user):
    for name in ("/etc/hostname", "/tmp"):
        messages, end = user.call(proc.START, command(name))
        assert end == {} and proc.ended(messages)["exitCode"] == 126
        assert b"ermission denied" in proc.output(messages, "stderr")


@row("A script without `#!` is run by the shell.")
def test_a_script_without_a_shebang(user):
    run(user, shell("printf 'echo script $1' > /home/user/plain; chmod +x /home/user/plain"))
    assert run(user, command("/home/user/plain", "a b"))[0] == "script a b\n"


@row("Arguments arrive as they are: spaces, quotes, newlines, empty ones, any letters.")
def test_arguments(user):
    words = ["a b", "", "'", '"', "$HOME", "`id`", "*", "\n", "-n", "--", "ä€𝄞", "\\", "-c"]
    said, _ = run(user, command("python3", "-c", "import sys; sys.stdout.write(chr(0).join(sys.argv[1:]))", *words))
    assert said.split("\0") == words


@row("Arguments that no program can be given: invalid_argument `... argument list too long`; nothing is started.")
def test_too_long_arguments(user):
    assert run(user, command("printf", "%.3s", "x" * 100_000))[0] == "xxx"
    code, text = refused_start(user, command("true", "x" * 200_000))
    assert (code, text.rpartition("': ")[2]) == ("invalid_argument", "fork/exec /bin/sh: argument list too long")


@row("A NUL byte in the command, an argument, a variable or the directory: invalid_argument.")
@pytest.mark.parametrize("options", [
    {"words": ["tr\0ue"]}, {"words": ["true", "\0"]}, {"words": ["true"], "envs": {"A": "\0"}}, {"words": ["true"], "cwd": "/tm\0p"},
])
def test_nul_bytes(user, options):
    words = options.pop("words")
    code, text = refused_start(user, command(*words, **options))
    assert code == "invalid_argument", text


@row("A process begins with the standard descriptors only, no signal blocked and none ignored.")
def test_nothing_is_inherited(user):
    said, _ = run(user, command("python3", "-c", (
        "import os; print(sorted(int(f) for f in os.listdir('/proc/self/fd') if os.path.exists('/proc/self/fd/' + f)))"
    )))
    assert said == "[0, 1, 2]\n"
    said, _ = run(user, command("grep", "-E", "^Sig(Blk|Ign)|^NoNewPrivs", "/proc/self/status"))
    assert {int(line.split()[1], 16) for line in said.splitlines()} == {0}, said


@row("List tells every live process: pid, tag and what was asked for, not what was made of it.")
def test_list(box, user):
    envs = {"A": "b"}
    with (
        proc.running(user, command("sleep", "1000", envs=envs, cwd="~", tag="asked")) as one,
        proc.running(user, command("sleep", "1001")) as other,
    ):
        listed = {process["pid"]: process for process in proc.ask(box.wire, "List", {})["processes"]}
        assert listed[one.pid] == {
            "pid": one.pid, "tag": "asked", "config": {"cmd": "sleep", "args": ["1000"], "envs": envs, "cwd": "~"},
        }
        assert listed[other.pid] == {"pid": other.pid, "config": {"cmd": "sleep", "args": ["1001"]}}
        for process in (one, other):
            proc.signal(box.wire, process.process)
            process.rest()
    left = {process["pid"] for process in proc.ask(box.wire, "List", {}).get("processes", [])}
    assert not left & {one.pid, other.pid}


@row("List of nothing is `{}`, and tells processes of other clients and users.")
def test_list_of_all(sandbox):
    wire = Wire(sandbox)
    assert proc.ask(wire, "List", {}) == {}
    handle = sandbox.commands.run("sleep 1000", background=True, user="root")
    assert [process["pid"] for process in proc.ask(wire, "List", {})["processes"]] == [handle.pid]
    handle.kill()


@row("A process that has ended is listed as long as others hold its pipes.")
def test_a_held_process_is_listed(box, user):
    with proc.running(user, shell("sleep 1000 & echo $!")) as process:
        child = int(process.until("\n"))
        box.sh(f"until grep -q '^State:.*Z' /proc/{process.pid}/status 2>/dev/null || [ ! -e /proc/{process.pid} ]; do sleep 0.02; done")
        assert process.pid in {found["pid"] for found in proc.ask(box.wire, "List", {})["processes"]}
        box.sh(f"kill -9 {child}")
        messages, end = process.rest()
    assert proc.ended(messages)["exited"] and end == {}


@row("Processes and terminals run in groups of the user's work, apart from envd; those of tag `_system` do not.")
def test_control_groups(box, root):
    def groups(pid):
        return pathlib.Path(f"/proc/{pid}/cgroup").read_text()

    def on_the_host(seconds):
        """The process that sleeps so long, as the host counts."""
        wanted = b"sleep\0" + seconds.encode() + b"\0"
        for entry in pathlib.Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if (entry / "cmdline").read_bytes() == wanted:
                        return entry.name
        raise AssertionError(f"nobody sleeps {seconds} s")

    unique = f"{os.getpid()}.{time.monotonic_ns() % 10**9:09}"
    own = groups(guest_of(box.sandbox))
    for number, (message, apart) in enumerate((
        (command("sleep", f"1{unique}"), True),
        (proc.terminal("sleep", f"2{unique}"), True),
        (command("sleep", f"3{unique}", tag="system"), True),
        (command("sleep", f"4{unique}", tag="_system"), False),
    ), start=1):
        with proc.running(root, message) as process:
            # Until the command has taken the place of what started it.
            run(root, shell(f"until grep -q sleep /proc/{process.pid}/comm; do sleep 0.02; done"))
            assert (groups(on_the_host(f"{number}{unique}")) != own) == apart, message
            proc.signal(root, process.process)
            process.rest()
