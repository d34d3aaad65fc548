"""The SDK by names over TLS: a domain, a key and what `firkin ca env` prints, and nothing else."""

import os
import re
import subprocess
import sys

import pytest

SCRIPT = """
import asyncio, os, subprocess
from e2b import AsyncSandbox, Sandbox

domain = os.environ["E2B_DOMAIN"]
with Sandbox.create(timeout=60) as sandbox:
    assert sandbox.commands.run("echo hi").stdout == "hi\\n"
    assert sandbox.get_host(8000) == f"8000-{sandbox.sandbox_id}.{domain}"
    url = sandbox.upload_url("/home/user/note")
    assert url.startswith(f"https://49983-{sandbox.sandbox_id}.{domain}/"), url
    curl = ["curl", "--silent", "--fail", "--cacert", os.environ["NODE_EXTRA_CA_CERTS"]]
    subprocess.run([*curl, "--form", "file=@-", url], input=b"by name", check=True, stdout=subprocess.DEVNULL)
    assert sandbox.files.read("/home/user/note") == "by name"
    assert subprocess.check_output([*curl, sandbox.download_url("/home/user/note")]) == b"by name"
    sandbox.kill()

async def asynchronous():
    sandbox = await AsyncSandbox.create(timeout=60)
    try:
        assert (await sandbox.commands.run("echo hi")).stdout == "hi\\n"
    finally:
        await sandbox.kill()

asyncio.run(asynchronous())
print("done")
"""


@pytest.fixture(scope="session")
def by_name(tmp_path_factory):
    """The environment of somebody who was given a domain."""
    command = [os.environ["FIRKIN_BIN"], "ca", "env", "--data-dir", os.environ["FIRKIN_TEST_DATA_DIR"]]
    lines = subprocess.check_output([*command, "--dir", tmp_path_factory.mktemp("ca")], text=True)
    environment = {name: value for name, value in os.environ.items() if name not in ("E2B_API_URL", "E2B_SANDBOX_URL")}
    return environment | {"E2B_DOMAIN": os.environ["FIRKIN_TEST_DOMAIN"]} | dict(re.findall(r"export (\w+)=(\S+)", lines))


def run(environment):
    return subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, text=True, capture_output=True, timeout=120, check=False
    )


def test_a_domain_a_key_and_the_authority_are_enough(by_name):
    result = run(by_name)
    assert result.stdout == "done\n", result.stderr


def test_without_the_authority_nothing_is_trusted(by_name):
    result = run({name: value for name, value in by_name.items() if name != "SSL_CERT_FILE"})
    assert result.returncode != 0
    assert "certificate" in result.stderr.lower(), result.stderr
