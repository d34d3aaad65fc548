"""Servers of a test's own, and what a server must leave on the host as it found it."""

import dataclasses
import os
import pathlib
import re
import signal
import subprocess
import threading

START_SECONDS = 180


@dataclasses.dataclass
class Server:
    """A `firkin serve` of one test's own, which can be killed and started again."""

    binary: str
    home: pathlib.Path
    process: subprocess.Popen = None
    environment: dict = None
    port: int = 0

    def start(self, *arguments):
        self.process = subprocess.Popen(
            [self.binary, "serve", "--listen", f"127.0.0.1:{self.port}", "--data-dir", self.home / "data", *arguments],
            stdout=subprocess.PIPE, stderr=open(self.home / "log", "a", encoding="utf-8"), text=True,
        )
        timer = threading.Timer(START_SECONDS, self.process.kill)
        timer.start()
        try:
            for line in self.process.stdout:
                if match := re.search(r"export (E2B_API_KEY)=(\S+)", line):
                    self.environment = (self.environment or {}) | {"api_key": match[2]}
                if match := re.search(r"^firkin ready.*http://127\.0\.0\.1:(\d+)", line):
                    self.port = int(match[1])
                    break
            else:
                raise AssertionError(f"no ready line:\n{(self.home / 'log').read_text()[-4000:]}")
        finally:
            timer.cancel()
        threading.Thread(target=self.process.stdout.read, daemon=True).start()
        url = f"http://127.0.0.1:{self.port}"
        self.environment = (self.environment or {}) | {"api_url": url, "sandbox_url": url}
        return self

    def options(self):
        return dict(self.environment)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@dataclasses.dataclass(frozen=True)
class Host:
    """What a server must leave as it found it."""

    mounts: frozenset
    cgroups: frozenset
    netns: frozenset
    processes: frozenset
    run: frozenset

    @staticmethod
    def look():
        mounts, netns, processes = set(), set(), set()
        mounts.update(line.split()[4] for line in open("/proc/1/mountinfo", encoding="utf-8"))
        for entry in pathlib.Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                name = (entry / "comm").read_text().strip()
                netns.add(os.readlink(entry / "ns/net"))
            except OSError:
                continue
            if name.startswith("firkin") or "firkin" in command.split(" ")[0]:
                processes.add((int(entry.name), command))
        cgroups = {str(path) for path in pathlib.Path("/sys/fs/cgroup").glob("*/firkin*/*")}
        run = {str(path) for path in pathlib.Path("/run/firkin").rglob("*")} if pathlib.Path("/run/firkin").exists() else set()
        return Host(frozenset(mounts), frozenset(cgroups), frozenset(netns), frozenset(processes), frozenset(run))
