"""Runs every kind of test, shows its output as it comes, and ends with one line that counts them.

unit   the crate's own unit and integration tests (cargo test)
sdk    the official SDKs, in Python and JS, and the scripts in examples/, against one real server
all    both
soak   the long runs, one after the other
"""

import concurrent.futures
import contextlib
import os
import pathlib
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading

ROOT = pathlib.Path(__file__).resolve().parent.parent
ENV = ROOT / "target" / "test-env"
PYTHON = ENV / "venv" / "bin" / "python"
NODE = ENV / "node-bin"
FIRKIN = ROOT / "target" / f"{platform.machine()}-unknown-linux-gnu" / "release" / "firkin"
FAILPOINTS = ROOT / "target" / "debug" / "firkin"
METHODS = pathlib.Path("tests") / "sdk" / "python" / "methods"
RUN_SECONDS = 300
START_SECONDS = 180
STOP_SECONDS = 60


class Counts:
    """Passed, failed and skipped, over all stages."""

    def __init__(self):
        self.passed = self.failed = self.skipped = 0

    def add(self, passed, failed, skipped=0):
        self.passed += passed
        self.failed += failed
        self.skipped += skipped


def stream(command, environment=None, cwd=ROOT):
    """Runs a command, prints its output as it comes, and returns its exit code and the output."""
    print(f"\n$ {' '.join(str(part) for part in command)}", flush=True)
    process = subprocess.Popen(
        command, cwd=cwd, env=environment, text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )
    lines = []
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    return process.wait(), "".join(lines)


def cargo_tests(counts, *extra):
    command = ["cargo", "test", "--all-features", "--no-fail-fast", *extra]
    code, output = stream(command)
    results = re.findall(r"test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored", output)
    failed = sum(int(result[1]) for result in results)
    counts.add(sum(int(result[0]) for result in results), failed, sum(int(result[2]) for result in results))
    if code != 0 and failed == 0:
        counts.add(0, 1)  # It did not even build.


class Server:
    """One real `firkin serve` with a data directory of its own, on a free port."""

    def __init__(self):
        self.data = pathlib.Path(tempfile.mkdtemp(prefix="firkin-test-", dir="/var/lib"))
        self.data.chmod(0o755)
        self.log = open(ENV / "server.log", "w", encoding="utf-8")
        self.process = subprocess.Popen(
            [FIRKIN, "serve", "--listen", "127.0.0.1:0", "--data-dir", self.data / "data", "--stop-sandboxes",
             "--disk-floor-mb", "512", "--warm-disk-floor-mb", "1024"],
            stdout=subprocess.PIPE, stderr=self.log, text=True,
        )
        try:
            self.environment = self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def _wait_until_ready(self):
        timer = threading.Timer(START_SECONDS, self.process.kill)
        timer.start()
        environment = dict(os.environ)
        try:
            for line in self.process.stdout:
                print("server:", line, end="", flush=True)
                if match := re.search(r"export (E2B_\w+)=(\S+)", line):
                    environment[match[1]] = match[2]
                if re.search(r"^firkin ready", line):
                    break
            else:
                raise SystemExit(f"the server did not start:\n{(ENV / 'server.log').read_text()}")
        finally:
            timer.cancel()
        for name in ("E2B_API_URL", "E2B_SANDBOX_URL", "E2B_API_KEY", "E2B_DOMAIN"):
            assert name in environment, f"the server did not print {name}"
        # By headers is what most tests do; those by names put this in the place of the two URLs.
        environment["FIRKIN_TEST_DOMAIN"] = environment.pop("E2B_DOMAIN")
        # What it prints later must not fill the pipe.
        threading.Thread(target=self.process.stdout.read, daemon=True).start()
        environment["FIRKIN_BIN"] = str(FIRKIN)
        environment["FIRKIN_FAILPOINTS_BIN"] = str(FAILPOINTS)
        environment["FIRKIN_TEST_DATA_DIR"] = str(self.data / "data")
        return environment

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                print("server: did not stop in time", flush=True)
        self.log.close()
        shutil.rmtree(self.data, ignore_errors=True)


def pytest_command(python, *extra):
    return [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rfEs", *extra]


def pytest(counts, environment, *extra):
    code, output = stream(
        pytest_command(PYTHON, "tests/sdk/python", f"--ignore={METHODS}", *extra), environment
    )
    count_pytest(counts, code, output)


def count_pytest(counts, code, output):
    found = {name: int(number) for number, name in re.findall(r"(\d+) (passed|failed|errors?|skipped)", output)}
    failed = found.get("failed", 0) + found.get("error", 0) + found.get("errors", 0)
    counts.add(found.get("passed", 0), failed or int(code not in (0, 5)), found.get("skipped", 0))


def by_name(environment, place):
    """The environment of somebody who was given a domain: names and TLS in the place of the two URLs."""
    printed = subprocess.check_output(
        [FIRKIN, "ca", "env", "--data-dir", environment["FIRKIN_TEST_DATA_DIR"], "--dir", place], text=True
    )
    named = {name: value for name, value in environment.items() if name not in ("E2B_API_URL", "E2B_SANDBOX_URL")}
    return named | {"E2B_DOMAIN": environment["FIRKIN_TEST_DOMAIN"]} | dict(re.findall(r"export (\w+)=(\S+)", printed))


def every_method(counts, environment):
    """Every method of several versions of the SDKs, by headers and by names. The runs share the server."""
    with tempfile.TemporaryDirectory() as place:
        named = by_name(environment, place)
        runs = []
        for name in ("venv", "venv-2.45", "venv-2.30"):
            command = pytest_command(ENV / name / "bin" / "python", "--tb=short", METHODS)
            runs += [
                (f"Python {name}, by headers", count_pytest, command, environment),
                (f"Python {name}, by names", count_pytest, command, named),
            ]
        command = pytest_command(PYTHON, "--tb=short", METHODS)
        http1 = named | {"E2B_HTTP_VERSION": "1.1"}
        runs.append(("Python venv, by names over HTTP/1.1", count_pytest, command, http1))
        command = node_command([copy_beside_packages("methods") / "every-method.test.mjs"])
        for name in ("e2b", "e2b-2.45", "e2b-2.30"):
            package = {"FIRKIN_TEST_SDK": name}
            runs += [
                (f"JS {name}, by headers", count_node, command, environment | package),
                (f"JS {name}, by names", count_node, command, named | package),
            ]

        def run(job):
            label, count, command, environment = job
            done = subprocess.run(
                ["timeout", str(RUN_SECONDS), *command], cwd=ROOT, env=environment, text=True, errors="replace",
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
            )
            return label, count, done.returncode, done.stdout

        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for label, count, code, output in pool.map(run, runs):
                print(f"\nevery method: {label}\n{output}", end="", flush=True)
                count(counts, code, output)


def copy_beside_packages(below="."):
    """ES modules resolve packages from where they stand, so the tests stand beside node_modules."""
    place = (ENV / "js" / "tests" / below).resolve()
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for script in sorted((ROOT / "tests" / "sdk" / "js" / below).glob("*.mjs")):
        shutil.copy(script, place)
    return place


def node_command(scripts):
    return [NODE, "--experimental-websocket", "--test", "--test-reporter=tap", *scripts]


def count_node(counts, code, output):
    found = {name: int(number) for name, number in re.findall(r"^# (pass|fail|skipped) (\d+)$", output, re.M)}
    failed = found.get("fail", 0)
    counts.add(found.get("pass", 0), failed or int(code != 0), found.get("skipped", 0))


def node_tests(counts, environment):
    scripts = sorted(copy_beside_packages().glob("*.test.mjs"))
    code, output = stream(node_command(scripts), environment)
    count_node(counts, code, output)


def examples(counts, environment):
    place = ENV / "js" / "examples"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(ROOT / "examples" / "js", place)
    scripts = [(PYTHON, script) for script in sorted((ROOT / "examples" / "python").glob("*.py"))]
    scripts += [(NODE, script) for script in sorted(place.glob("*.mjs"))]
    for interpreter, script in scripts:
        code, _ = stream(["timeout", "120", interpreter, script], environment)
        print(f"example {script.name}: {'ok' if code == 0 else f'FAILED with exit code {code}'}", flush=True)
        counts.add(int(code == 0), int(code != 0))


@contextlib.contextmanager
def server():
    running = Server()
    try:
        yield running.environment
    finally:
        running.stop()


def build_failpoints(counts):
    """The binary that dies at named steps, and no other: built as `cargo test` builds it, so after that it is there."""
    code, _ = stream(["cargo", "test", "--all-features", "--no-run", "--test", "integration"])
    counts.add(0, int(code != 0))


def sdk(counts):
    build_failpoints(counts)
    with server() as environment:
        examples(counts, environment)
        pytest(counts, environment, "-m", "not soak")
        every_method(counts, environment)
        node_tests(counts, environment)


def soak(counts):
    cargo_tests(counts, "--", "--ignored", "--test-threads=1")
    with server() as environment:
        pytest(counts, environment, "-m", "soak")


def main():
    stages = {"unit": [cargo_tests], "sdk": [sdk], "all": [cargo_tests, sdk], "soak": [soak]}
    counts = Counts()
    for stage in stages[sys.argv[1] if len(sys.argv) > 1 else "all"]:
        stage(counts)
    print(f"\n{counts.passed} passed, {counts.failed} failed, {counts.skipped} skipped", flush=True)
    return int(counts.failed > 0 or counts.passed == 0)


if __name__ == "__main__":
    sys.exit(main())
