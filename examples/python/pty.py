"""A terminal: start a shell, type, read, resize. Needs E2B_API_URL, E2B_SANDBOX_URL and E2B_API_KEY."""
from e2b import PtySize, Sandbox

with Sandbox.create() as sandbox:
    terminal = sandbox.pty.create(PtySize(rows=24, cols=80))
    sandbox.pty.resize(terminal.pid, PtySize(rows=30, cols=100))
    sandbox.pty.send_stdin(terminal.pid, b"stty size; exit\n")
    output = b""
    terminal.wait(on_pty=lambda data: globals().__setitem__("output", output + data))
    assert b"30 100" in output, output
    print("the terminal says:", output.decode().strip().splitlines()[-2:])
print("ok")
