"""The server's log in a file, in bounded room."""

import stat

from e2b import Sandbox
from test_pause import wait_for


def test_the_log_of_gateway_and_warden_goes_to_the_file_and_stays_after_the_end(own_server):
    path = own_server.home / "firkin.log"
    own_server.start("--log-file", path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    sandbox = Sandbox.create(timeout=60, **own_server.options())
    assert wait_for(lambda: f"sandbox {sandbox.sandbox_id} runs" in path.read_text())
    sandbox.kill()
    own_server.kill()
    own_server.start("--log-file", path)
    assert own_server.terminate() == 0
    assert wait_for(lambda: "stopping" in path.read_text())
    assert "runs" in path.read_text(), "the second start goes on in the same file"
    assert "sandbox" not in (own_server.home / "log").read_text()


def test_a_start_that_fails_says_why_where_it_was_started(own_server):
    own_server.start()
    second = type(own_server)(own_server.binary, own_server.home)
    try:
        second.start("--log-file", own_server.home / "firkin.log")
        raise RuntimeError("two servers on one directory")
    except AssertionError as error:
        assert "in use by another firkin server" in str(error)
