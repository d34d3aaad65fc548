"""Disks of sandboxes under both storage drivers: their size, their snapshots, and what is left of them."""

import pathlib
import shutil

import pytest

from e2b import CommandExitException, NotEnoughSpaceException, Sandbox
from servers import wait_for

MIB = 1 << 20
DISK_MIB = 64
BTRFS = pytest.param("btrfs", marks=pytest.mark.skipif(not shutil.which("mkfs.btrfs"), reason="no btrfs-progs"))


def start(server, driver, *flags):
    server.variables = {"FIRKIN_DISK_MB": str(DISK_MIB)}
    server.flags = ("--storage", driver, "--warm", "none")
    server.start(*flags)
    return server


def sandbox(server, *template):
    return Sandbox.create(*template, timeout=120, **server.options())


def pool_devices(server):
    """The loop devices that carry the server's own file system."""
    image = str(server.home / "data/templates/pool.img")
    backing = pathlib.Path("/sys/block").glob("loop*/loop/backing_file")
    return [path for path in backing if path.read_text().strip().startswith(image)]


@pytest.mark.parametrize("driver", ["plain", BTRFS])
def test_uploads_are_held_to_the_size_of_the_disk(own_server, driver):
    start(own_server, driver)
    box = sandbox(own_server)
    assert wait_for(lambda: [sample.disk_total for sample in box.get_metrics()][-1:] == [DISK_MIB * MIB])
    with pytest.raises(NotEnoughSpaceException):
        box.files.write("large", b"x" * (DISK_MIB + 1) * MIB)
    assert not box.files.exists("large")
    box.files.write("half", b"x" * (DISK_MIB // 2) * MIB)
    with pytest.raises(NotEnoughSpaceException):
        box.files.write("other half", b"x" * (DISK_MIB // 2 + 4) * MIB)
    assert box.files.exists("half")


def writes(box, name, mebibytes):
    try:
        box.files.write(name, b"x" * mebibytes * MIB)
    except NotEnoughSpaceException:
        return False
    return True


@pytest.mark.parametrize("driver", [BTRFS])
def test_the_kernel_keeps_processes_within_the_size_of_the_disk(own_server, driver):
    start(own_server, driver)
    box, neighbour = sandbox(own_server), sandbox(own_server)
    for _ in range(2):
        with pytest.raises(CommandExitException) as failed:
            box.commands.run(f"rm -f flood; dd if=/dev/zero of=flood bs=1M count={2 * DISK_MIB} conv=fsync")
        assert "Disk quota exceeded" in failed.value.stderr
    used = box.commands.run("stat -c %s flood").stdout
    assert int(used) <= DISK_MIB * MIB
    neighbour.commands.run(f"head -c {DISK_MIB // 2}M /dev/zero > file && sync")
    # A full disk can be snapshotted; what the snapshot holds goes on counting.
    copy = sandbox(own_server, box.create_snapshot().snapshot_id)
    assert copy.commands.run("stat -c %s flood").stdout == used
    copy.commands.run("rm flood && head -c 1M /dev/zero > small && sync")


def test_what_writes_far_over_the_size_is_ended_where_the_kernel_does_not_keep_it(own_server):
    start(own_server, "plain")
    box = sandbox(own_server)
    bystander = box.commands.run("sleep 300", background=True)
    with pytest.raises(CommandExitException) as ended:
        box.commands.run("while :; do head -c 8M /dev/zero; sleep 0.2; done > flood", timeout=100)
    assert ended.value.exit_code in (-1, 137)
    assert box.commands.run("stat -c %s flood").exit_code == 0, "the sandbox lives"
    assert bystander.pid in [process.pid for process in box.commands.list()]
    assert "far over its size" in own_server.said()
    box.commands.run("rm flood")
    assert wait_for(lambda: writes(box, "again", 1), 30)


@pytest.mark.parametrize("driver", ["plain", BTRFS])
def test_a_snapshot_is_the_disk_as_it_was_through_pauses_and_kills(own_server, driver):
    start(own_server, driver)
    box = sandbox(own_server)
    box.files.write("mark", "first")
    box.commands.run("ln mark again && chmod 600 mark && sudo touch /usr/local/seen")
    snapshot = box.create_snapshot().snapshot_id
    box.files.write("mark", "second")
    box.pause()
    own_server.kill()
    start(own_server, driver)
    child = sandbox(own_server, snapshot)
    assert child.files.read("mark") == "first"
    assert child.commands.run("stat -c '%a %h' mark; ls /usr/local/seen").stdout == "600 2\n/usr/local/seen\n"
    box = Sandbox.connect(box.sandbox_id, **own_server.options())
    assert box.files.read("mark") == "second"
    grandchild = sandbox(own_server, child.create_snapshot().snapshot_id)
    assert grandchild.files.read("again") == "first"


@pytest.mark.parametrize("driver", [BTRFS])
def test_nothing_of_a_file_system_of_its_own_is_left_mounted(own_server, driver):
    start(own_server, driver, "--stop-sandboxes")
    box = sandbox(own_server)
    box.files.write("mark", "text")
    box.create_snapshot()
    assert len(pool_devices(own_server)) == 1
    assert own_server.terminate() == 0
    assert wait_for(lambda: not pool_devices(own_server))
    assert f"{own_server.home}/data/" not in pathlib.Path("/proc/self/mountinfo").read_text()
    # It is found again, under any choice but another driver.
    own_server.flags = ("--warm", "none")
    own_server.start("--stop-sandboxes")
    assert len(pool_devices(own_server)) == 1
    own_server.terminate()
    own_server.flags = ("--warm", "none", "--storage", "plain")
    with pytest.raises(AssertionError, match="pool.img"):
        own_server.start()
