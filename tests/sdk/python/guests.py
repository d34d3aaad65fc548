"""The server and a sandbox's guest as this host sees them: processes, memory and what they hold open."""

import contextlib
import os
import pathlib


def guest_of(sandbox):
    """The pid of a sandbox's guest on this host."""
    wanted = [b"firkin-guest", sandbox.sandbox_id.encode()]
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if (entry / "cmdline").read_bytes().split(b"\0")[:2] != wanted:
                    continue
                # Its helpers have the same name; it is their parent.
                parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[1]
                if not pathlib.Path(f"/proc/{parent}/cmdline").read_bytes().startswith(b"firkin-guest"):
                    return int(entry.name)
    raise AssertionError("the guest is not on this host")


def resident(pid):
    """Bytes of a process's memory."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) << 10


def descriptors(pid):
    """How many files a process has open."""
    return len(list(pathlib.Path(f"/proc/{pid}/fd").iterdir()))


def inotify_watches(pid):
    """How many inotify watches a process holds."""
    held = set()
    for entry in pathlib.Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(OSError):
            # A descriptor may be there twice.
            held.update(line for line in entry.read_text().splitlines() if line.startswith("inotify wd:"))
    return len(held)


def gateway():
    """The pid of the shared server's gateway; its warden has the same command line and is root."""
    data = os.environ["FIRKIN_TEST_DATA_DIR"].encode()
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if b"serve" in words and data in words and entry.stat().st_uid != 0:
                    return int(entry.name)
    raise AssertionError("the gateway is not on this host")
