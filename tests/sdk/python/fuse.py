"""A file system in user space with an empty root directory, to be mounted into a sandbox: what a
network mount is to it. Speaks just as much of the kernel's protocol as a listing and a mkdir need."""

import errno
import os
import stat
import struct
import threading

LOOKUP, FORGET, GETATTR, MKDIR, STATFS, INIT, OPENDIR, READDIR, RELEASEDIR = 1, 2, 3, 9, 17, 26, 27, 28, 29
INTERRUPT, BATCH_FORGET = 36, 42
OPTIONS = "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"


class Fuse:
    """One connection to the kernel: mount with its options, then `serve`."""

    def __init__(self):
        self.fd = os.open("/dev/fuse", os.O_RDWR)
        self.options = OPTIONS.format(self.fd)
        self.nodes = 1

    def serve(self):
        """Answers in a thread of its own until the mount is gone, as it is with its sandbox."""
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        try:
            while True:
                self._exchange()
        except OSError:
            os.close(self.fd)

    def _exchange(self):
        request = os.read(self.fd, 1 << 20)
        _, opcode, unique, node = struct.unpack_from("<IIQQ", request)
        if opcode in (FORGET, INTERRUPT, BATCH_FORGET):
            return
        answer = self._answer(opcode, node)
        failed, body = (-answer, b"") if isinstance(answer, int) else (0, answer)
        os.write(self.fd, struct.pack("<IiQ", 16 + len(body), failed, unique) + body)

    def _answer(self, opcode, node):
        """A body, or an errno."""
        if opcode == INIT:
            return struct.pack("<IIIIHHIIHHI28x", 7, 31, 4096, 0, 12, 9, 4096, 1, 0, 0, 0)
        if opcode == GETATTR:
            return struct.pack("<QII", 0, 0, 0) + attributes(node)
        if opcode == STATFS:
            return struct.pack("<QQQQQIIII24x", 1, 1, 1, 1, 1, 4096, 255, 4096, 0)
        if opcode == OPENDIR:
            return struct.pack("<QII", 0, 0, 0)
        if opcode in (READDIR, RELEASEDIR):
            return b""
        if opcode == LOOKUP:
            return errno.ENOENT
        if opcode == MKDIR:
            self.nodes += 1
            return struct.pack("<QQQQII", self.nodes, 0, 0, 0, 0, 0) + attributes(self.nodes)
        return errno.ENOSYS


def attributes(node):
    mode = stat.S_IFDIR | 0o777
    return struct.pack("<QQQQQQIIIIIIIIII", node, 0, 0, 0, 0, 0, 0, 0, 0, mode, 2, 0, 0, 0, 4096, 0)
