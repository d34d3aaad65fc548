"""`firkin sandbox` as the tests call it: with pipes, on a terminal, over a way that can be cut."""

import contextlib
import fcntl
import os
import pty
import select
import socket
import struct
import subprocess
import termios
import threading
import time
import urllib.parse

SECONDS = 60


def runner(environment):
    def run(*arguments, changed=None, **options):
        options = {"text": True, "timeout": SECONDS, "check": False} | options
        return subprocess.run(
            [os.environ["FIRKIN_BIN"], "sandbox", *arguments],
            env=environment | (changed or {}), stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
        )

    run.environment = environment
    return run


def started(cli, *arguments, **options):
    """A command that runs, past its first line."""
    process = subprocess.Popen(
        [os.environ["FIRKIN_BIN"], "sandbox", "exec", *arguments],
        env=cli.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )
    timer = threading.Timer(SECONDS, process.kill)
    timer.start()
    first = process.stdout.readline()
    return process, timer, first


class Terminal:
    """A command on a terminal of its own, whose user types."""

    def __init__(self, cli, *arguments, rows=31, columns=97):
        self.master, slave = pty.openpty()
        self.slave_name = os.ttyname(slave)
        self.size(rows, columns)
        self.mode = termios.tcgetattr(slave)
        self.process = subprocess.Popen(
            [os.environ["FIRKIN_BIN"], "sandbox", *arguments], env=cli.environment,
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        # Held open, so that the mode can be looked at when the command has ended.
        self.slave = slave
        self.said = b""

    def size(self, rows, columns):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys):
        os.write(self.master, keys)

    def wait_for(self, text):
        deadline = time.monotonic() + SECONDS
        while text not in self.said:
            assert time.monotonic() < deadline, self.said
            if select.select([self.master], [], [], 0.5)[0]:
                self.said += os.read(self.master, 65536)
        _, _, self.said = self.said.partition(text)

    def is_raw(self):
        return not termios.tcgetattr(self.slave)[3] & (termios.ICANON | termios.ECHO)

    def end(self):
        deadline = time.monotonic() + SECONDS
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.said
            if select.select([self.master], [], [], 0.1)[0]:
                self.said += os.read(self.master, 65536)
        while select.select([self.master], [], [], 0)[0]:
            self.said += os.read(self.master, 65536)
        assert termios.tcgetattr(self.slave) == self.mode, "the terminal is as it was"
        return self.process.returncode

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)


class Relay:
    """A way to the server that can be cut."""

    def __init__(self, url):
        self.target = urllib.parse.urlsplit(url)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.ends = []
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                far = socket.create_connection((self.target.hostname, self.target.port))
                self.ends += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self.pump, args=(source, sink), daemon=True).start()

    @staticmethod
    def pump(source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def cut(self):
        self.listener.close()
        for end in self.ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
