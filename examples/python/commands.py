"""Create a sandbox, run a command in it, end it. Needs E2B_API_URL, E2B_SANDBOX_URL and E2B_API_KEY."""
from e2b import CommandExitException, Sandbox

sandbox = Sandbox.create()
try:
    result = sandbox.commands.run("echo hi")
    assert (result.stdout, result.exit_code) == ("hi\n", 0), result
    print("a command:", result.stdout.strip())

    try:
        sandbox.commands.run("echo oops >&2; exit 3")
        raise SystemExit("exit code 3 was not reported")
    except CommandExitException as error:
        assert (error.exit_code, error.stderr) == (3, "oops\n"), error
        print("a failing command: exit code", error.exit_code)

    root = sandbox.commands.run("sudo -n id -u")
    assert root.stdout == "0\n", root
    print("sudo without a password: uid", root.stdout.strip())
finally:
    assert sandbox.kill()
print("ok")
