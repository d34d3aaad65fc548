"""Mounts that a sandbox cannot make itself, made for it by the tests, which are the host's root.

Run as a program it enters the mount namespace of a process and mounts there; a descriptor that is
named in the options is inherited.
"""

import ctypes
import os
import pathlib
import subprocess
import sys
import time
import uuid

CLONE_NEWNS = 0x20000


def mount(box, target, kind, options, fd=None):
    """Mounts in the sandbox; goes with it."""
    arguments = [sys.executable, __file__, str(process_of(box)), target, kind, options]
    subprocess.run(arguments, check=True, pass_fds=[] if fd is None else [fd])


def process_of(box):
    """The host's pid of some process of the sandbox."""
    mark = uuid.uuid4().hex
    box.sandbox.commands.run(f"exec python3 -c 'import time; time.sleep(600)' {mark}", background=True, timeout=600)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for directory in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                # Not a shell that was only told of the mark, nor its forks of another namespace.
                if (directory / "cmdline").read_bytes().endswith(b"\0" + mark.encode() + b"\0"):
                    return int(directory.name)
            except OSError:
                continue
    raise AssertionError("the sandbox's process is not to be seen on the host")


def main(pid, target, kind, options):
    libc = ctypes.CDLL(None, use_errno=True)
    namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
    done = libc.setns(namespace, CLONE_NEWNS) == 0 and (
        libc.mount(b"none", target.encode(), kind.encode(), 0, options.encode()) == 0
    )
    if not done:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


if __name__ == "__main__":
    main(*sys.argv[1:])
