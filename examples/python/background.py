"""A background command with stdin, then one that is killed. Needs E2B_API_URL, E2B_SANDBOX_URL and E2B_API_KEY."""
from e2b import CommandExitException, Sandbox

with Sandbox.create() as sandbox:
    reader = sandbox.commands.run("read line; echo got $line", background=True, stdin=True)
    sandbox.commands.send_stdin(reader.pid, "hello\n")
    result = reader.wait()
    assert result.stdout == "got hello\n", result
    print("stdin:", result.stdout.strip())

    sleeper = sandbox.commands.run("sleep 600", background=True)
    assert sleeper.pid in [process.pid for process in sandbox.commands.list()]
    assert sleeper.kill()
    try:
        sleeper.wait()
        raise SystemExit("a killed command ended well")
    except CommandExitException as error:
        print("killed:", error.error)
    assert sleeper.pid not in [process.pid for process in sandbox.commands.list()]
print("ok")
