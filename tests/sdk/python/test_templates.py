"""Templates as they are used: what `base` offers inside, and root file systems that are imported."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import tarfile
import tempfile

import pytest
from servers import Server
from test_e2b_cli import CLI, NODE

from e2b import CommandExitException, Sandbox, Template, TemplateException

PACKAGES = r"""
set -e
cd "$(mktemp -d)"
begin() {
    rm -rf p && mkdir -p p/DEBIAN p/usr/bin
    printf 'Package: %s\nVersion: %s\nArchitecture: all\nMaintainer: nobody <a@b.c>\nDescription: test\n' "$1" "$2" \
        >p/DEBIAN/control
    printf '#!/bin/sh\necho hello from %s\n' "$1" >"p/usr/bin/$1" && chmod 755 "p/usr/bin/$1"
}
finish() { dpkg-deb --root-owner-group -b p "/tmp/$1.deb" >/dev/null; }
begin plainpkg 1 && finish plain
begin confpkg 1 && mkdir p/etc && echo setting=1 >p/etc/confpkg.conf && echo /etc/confpkg.conf >p/DEBIAN/conffiles
printf '#!/bin/sh\necho configured >/var/lib/confpkg.state\n' >p/DEBIAN/postinst && chmod 755 p/DEBIAN/postinst
finish conf1
sed -i 's/^Version: 1/Version: 2/' p/DEBIAN/control && echo setting=2 >p/etc/confpkg.conf && finish conf2
begin takeover 1 && mkdir p/etc && echo nobody >p/etc/sudoers && echo /etc/sudoers >p/DEBIAN/conffiles && finish takeover
"""


@pytest.fixture(scope="module")
def base():
    sandbox = Sandbox.create(timeout=300)
    yield sandbox
    sandbox.kill()


def run(sandbox, line, **options):
    return sandbox.commands.run(line, timeout=60, **options).stdout.strip()


def refused(sandbox, line, **options):
    with pytest.raises(CommandExitException) as caught:
        sandbox.commands.run(line, timeout=60, **options)
    return caught.value.stderr


def needs(sandbox, *tools):
    for tool in tools:
        if sandbox.commands.run(f"command -v {tool} || true").stdout == "":
            pytest.skip(f"this host does not have {tool} as a package")


def test_local_packages_are_installed_upgraded_and_removed(base):
    run(base, PACKAGES)
    assert run(base, "sudo apt-get install -y /tmp/plain.deb && plainpkg").endswith("hello from plainpkg")
    run(base, "sudo dpkg -i /tmp/conf1.deb")
    assert run(base, "cat /etc/confpkg.conf /var/lib/confpkg.state") == "setting=1\nconfigured"
    # Nobody is there to answer: a changed file of the user's stays.
    run(base, "echo setting=mine | sudo tee /etc/confpkg.conf && sudo apt-get install -y /tmp/conf2.deb </dev/null")
    assert run(base, "cat /etc/confpkg.conf") == "setting=mine"
    assert run(base, "dpkg-query -W -f '${Version} ${Status}' confpkg") == "2 install ok installed"
    # A package that ships a file of ours does not lock the user out.
    run(base, "sudo apt-get install -y /tmp/takeover.deb </dev/null && sudo -n true")
    run(base, "sudo apt-get remove -y plainpkg && ! command -v plainpkg")
    run(base, "sudo apt-get purge -y confpkg takeover && test ! -e /etc/confpkg.conf")


def test_the_package_database_is_sane(base):
    assert run(base, "dpkg -S /usr/bin/env") == "coreutils: /usr/bin/env"
    assert run(base, "dpkg -l bash | tail -1").startswith("ii ")
    assert run(base, "sudo dpkg --audit") == ""
    run(base, "sudo apt-get check")


def test_python_packages_are_built_and_installed(base):
    needs(base, "pip3")
    base.files.write("/tmp/own/setup.py", "from setuptools import setup\nsetup(name='own', version='1', packages=['own'])\n")
    base.files.write("/tmp/own/own/__init__.py", "X = 5\n")
    run(base, "cd /tmp/own && pip install --no-build-isolation --no-index .")
    assert run(base, "cd / && python -c 'import own; print(own.X, own.__file__)'").startswith("5 /home/user/.local/")
    run(base, "cd /tmp/own && sudo pip install --no-build-isolation --no-index .")
    assert run(base, "cd / && sudo python3 -c 'import own; print(own.__file__)'").startswith("/usr/local/lib/python3")
    run(base, "cd /tmp && python3 -m venv own-env")
    assert run(base, "/tmp/own-env/bin/python -c 'import sys; print(sys.prefix)'") == "/tmp/own-env"


def test_git_commits_and_serves(base):
    needs(base, "git")
    run(base, "mkdir ~/repo && cd ~/repo && git init -q . && git config user.email a@b.c && git config user.name n")
    assert run(base, "cd ~/repo && echo x >file && git add file && git commit -qm one && git log --format=%s") == "one"
    daemon = base.commands.run("git daemon --base-path=/home/user --export-all --listen=127.0.0.1 /home/user", background=True)
    cloned = run(
        base, "for try in $(seq 50); do git clone -q git://127.0.0.1/repo /tmp/clone 2>/dev/null && break; sleep 0.1; done; "
        "cat /tmp/clone/file",
    )
    daemon.kill()
    assert cloned == "x"


@pytest.mark.parametrize("tool, line, expected", [
    ("tput", "TERM=xterm tput setaf 1 | od -An -c | tr -d ' '", r"033\[31m"),
    ("ss", "ss -ltn", "^State"),
    ("pgrep", "(sleep 20 &) && pgrep -x sleep && pkill -x sleep", r"^\d+$"),
    ("curl", "curl -s file:///etc/hostname", "^[a-z0-9]+$"),
    ("node", "node -p '[1, 2].length'", "^2$"),
    ("gcc", "echo 'int main(void) { return 7; }' >/tmp/m.c && gcc -o /tmp/m /tmp/m.c && { /tmp/m; echo $?; }", "^7$"),
    ("awk", "awk 'BEGIN { print 1 + 1 }'", "^2$"),
])
def test_everyday_tools_run(base, tool, line, expected):
    needs(base, tool)
    assert re.search(expected, run(base, line), re.MULTILINE)


def test_accounts_are_made_and_switched(base):
    assert run(base, "id") == "uid=1000(user) gid=1000(user) groups=1000(user),27(sudo)"
    assert run(base, "sudo su -c 'id -u'") == "0"
    assert run(base, "sudo su - user -c 'pwd; whoami'") == "/home/user\nuser"
    assert "Password" in refused(base, "su -c id </dev/null")
    assert run(base, "sudo useradd -m bob && sudo -u bob id -un") == "bob"
    run(base, "echo bob:secret1234 | sudo chpasswd && sudo grep -q '^bob:[$]' /etc/shadow")
    assert run(base, "sudo passwd -S bob").startswith("bob P ")
    run(base, "sudo userdel bob && ! id bob 2>/dev/null")


def test_sudo_is_what_scripts_expect(base):
    assert run(base, "sudo -n id -u") == "0"
    assert run(base, "sudo -u user id -un") == "user"
    assert run(base, "sudo -u '#1000' id -un") == "user"
    assert run(base, "sudo -i pwd") == "/root"
    assert run(base, "sudo sh -c 'echo $HOME $USER $SUDO_USER $SUDO_UID'") == "/root root user 1000"
    assert run(base, "FOO=bar sudo sh -c 'echo \"[$FOO]\"'") == "[]"
    assert run(base, "FOO=bar sudo -E sh -c 'echo $FOO $HOME'") == "bar /home/user"
    assert run(base, "sudo FOO=x sh -c 'echo $FOO'") == "x"
    assert run(base, "PATH=/tmp:$PATH sudo sh -c 'echo $PATH'").startswith("/usr/local/sbin:/usr/local/bin:")
    assert "NOPASSWD: ALL" in run(base, "sudo -l")
    assert run(base, "sudo -n sh -c 'exit 7' || echo $?") == "7"
    assert run(base, "sudo -u user id -un", user="root") == "user"
    assert "nosuch" in refused(base, "sudo -u nosuch id")


def test_sudo_refuses_who_has_no_right(base):
    assert run(base, "sudo -n id -u") == "0"
    run(base, "sudo useradd eve")
    for line in ("id", "-l", "-u user id"):
        assert "eve is not in the sudoers file" in refused(base, f"sudo -u eve sudo -n {line}")


def small_root(top):
    """A root file system of bash, a few tools and their libraries, from the host's files."""
    programs = ["/bin/bash", "/bin/sh", "/bin/cat", "/bin/stat", "/usr/bin/id", "/usr/bin/env"]
    files = set(programs)
    for program in programs:
        libraries = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
        files.update(re.findall(r"(/\S+) \(0x", libraries))
    for file in files:
        place = top / file.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    (top / "etc").mkdir()
    return marked(top)


def marked(root):
    """Adds an old file, by which the import is known again."""
    (root / "etc/hello").write_text("imported\n")
    os.utime(root / "etc/hello", (1_000_000_000, 1_000_000_000))
    return root


def template_import(name, *source):
    data_dir = os.environ["FIRKIN_TEST_DATA_DIR"]
    command = [os.environ["FIRKIN_BIN"], "template", "import", name, *source, "--data-dir", data_dir]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def archive_of(root, file):
    with tarfile.open(file, "w:gz") as archive:
        archive.add(root, ".")
    return file


def works(name):
    with Sandbox.create(name, timeout=60) as sandbox:
        assert run(sandbox, "cat /etc/hello; stat -c %Y /etc/hello; id -un") == "imported\n1000000000\nuser"
        assert run(sandbox, "sudo -n id -u") == "0"


def test_an_imported_directory_and_archive_run(tmp_path):
    root = small_root(tmp_path / "root")
    imported = template_import("test-imported-dir", "--rootfs", root)
    assert imported.returncode == 0, imported.stderr
    works("test-imported-dir")
    imported = template_import("test-imported-tar", "--tar", archive_of(root, tmp_path / "root.tar.gz"))
    assert imported.returncode == 0, imported.stderr
    works("test-imported-tar")


def test_builds_are_tagged_and_used_by_their_tags(tmp_path):
    root = small_root(tmp_path / "root")
    for text in ("old", "new"):
        (root / "etc/hello").write_text(text)
        imported = template_import("test-tagged", "--rootfs", root, "--team", "default")
        assert imported.returncode == 0, imported.stderr
        if text == "old":
            first = Template.assign_tags("test-tagged", ["v1", "stable"])
    assert first.tags == ["v1", "stable"]
    second = Template.assign_tags("test-tagged", "stable")
    assert second.build_id != first.build_id
    tags = {tag.tag: str(tag.build_id) for tag in Template.get_tags("test-tagged")}
    assert tags == {"default": second.build_id, "stable": second.build_id, "v1": first.build_id}
    for name, text in (("test-tagged:v1", "old"), ("test-tagged:stable", "new"), ("default/test-tagged", "new")):
        assert Template.exists(name)
        with Sandbox.create(name, timeout=60) as sandbox:
            assert run(sandbox, "cat /etc/hello") == text
    Template.remove_tags("test-tagged", "stable")
    assert not Template.exists("test-tagged:stable") and Template.exists("test-tagged:v1")
    with pytest.raises(TemplateException, match="404: tag 'v9' does not exist"):
        Template.assign_tags("test-tagged:v9", "x")
    with pytest.raises(TemplateException, match="400: tag 'default' cannot be deleted"):
        Template.remove_tags("test-tagged", "default")


def test_the_cli_lists_publishes_and_takes_back(tmp_path):
    imported = template_import("test-published", "--rootfs", small_root(tmp_path / "root"), "--team", "default")
    assert imported.returncode == 0, imported.stderr

    def e2b(*arguments):
        return subprocess.run([NODE, CLI, "template", *arguments], text=True, capture_output=True, timeout=60, check=True).stdout

    def public():
        listed = json.loads(e2b("list", "-f", "json"))
        return next(template["public"] for template in listed if template["names"] == ["default/test-published"])

    assert public() is False
    assert "Published as: default/test-published" in e2b("publish", "test-published", "-y")
    assert public() is True
    e2b("unpublish", "default/test-published", "-y")
    assert public() is False


def test_a_hostile_archive_is_refused(tmp_path):
    root = small_root(tmp_path / "root")
    (tmp_path / "evil").write_text("x")
    allowed = template_import("test-honest", "--tar", archive_of(root, tmp_path / "root.tar.gz"))
    assert allowed.returncode == 0, allowed.stderr
    for place in ("../firkin-test-evil", "/tmp/firkin-test-evil"):
        with tarfile.open(tmp_path / "evil.tar", "w") as archive:
            archive.add(root, ".")
            entry = archive.gettarinfo(tmp_path / "evil")
            entry.name = place
            archive.addfile(entry, open(tmp_path / "evil", "rb"))
        imported = template_import("test-hostile", "--tar", tmp_path / "evil.tar")
        assert imported.returncode != 0 and "import refused" in imported.stderr, imported.stderr
    assert not pathlib.Path("/tmp/firkin-test-evil").exists()


@pytest.fixture
def server_elsewhere():
    """A server whose data directory is on another file system than /usr."""
    home = pathlib.Path(tempfile.mkdtemp(prefix="firkin-test-", dir="/var/lib"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755,size=1g", "firkin-test", home], check=True)
    server = Server(os.environ["FIRKIN_BIN"], home)
    try:
        yield server
    finally:
        if server.process and server.process.poll() is None:
            server.terminate()
        subprocess.run(["umount", "-l", home], check=True)
        home.rmdir()


def test_the_live_view_where_files_cannot_be_shared(server_elsewhere):
    server = server_elsewhere.start("--stop-sandboxes")
    log = (server.home / "log").read_text()
    assert log.count("shows this host's whole /usr live") == 1, log
    for name in ("host", "base"):
        with Sandbox.create(name, timeout=60, **server.options()) as sandbox:
            assert run(sandbox, "sudo -n id -u") == "0"
            assert run(sandbox, "python3 -c 'print(1)'; ls /usr/local/bin /home") == "1\n/home:\nuser\n\n/usr/local/bin:"
            # Nothing written inside reaches the host.
            run(sandbox, "sudo touch /usr/bin/firkin-test-inside && sudo rm /usr/bin/env")
    assert not pathlib.Path("/usr/bin/firkin-test-inside").exists()
    assert pathlib.Path("/usr/bin/env").exists()


@pytest.mark.soak
def test_a_debootstrap_tree_runs(tmp_path):
    if shutil.which("debootstrap") is None:
        pytest.skip("debootstrap is not installed")
    root = tmp_path / "root"
    made = subprocess.run(
        ["debootstrap", "--variant=minbase", "bookworm", root], capture_output=True, text=True, timeout=600
    )
    if made.returncode != 0:
        pytest.skip(f"no packages to be had: {made.stdout[-300:]}")
    marked(root)
    for source in (("--rootfs", root), ("--tar", archive_of(root, tmp_path / "root.tar.gz"))):
        imported = template_import("test-debootstrap", *source)
        assert imported.returncode == 0, imported.stderr
        works("test-debootstrap")
