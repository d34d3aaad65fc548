"""Every method of `git`: repositories, a bare one as the remote, and one behind HTTP with a password."""

import pytest

from e2b import CommandExitException, GitAuthException, GitUpstreamException, InvalidArgumentException
from flavours import Uniform

WHO = {"author_name": "A U Thor", "author_email": "author@example.test"}
# `git http-backend` behind a password, on a free port that it prints.
HTTP_SERVER = '''
import base64, http.server, os, subprocess, sys

class Handler(http.server.CGIHTTPRequestHandler):
    def backend(self):
        if self.headers.get("Authorization") != "Basic " + base64.b64encode(b"me:pass-word").decode():
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.end_headers()
            return
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        environment = dict(os.environ, GIT_PROJECT_ROOT=sys.argv[1], GIT_HTTP_EXPORT_ALL="1", PATH_INFO=path,
            QUERY_STRING=query, REQUEST_METHOD=self.command, REMOTE_USER="me", CONTENT_LENGTH=str(len(body)),
            CONTENT_TYPE=self.headers.get("Content-Type", ""), HTTP_CONTENT_ENCODING=self.headers.get("Content-Encoding", ""))
        answer = subprocess.run(["git", "http-backend"], input=body, env=environment, capture_output=True).stdout
        head, _, body = answer.partition(b"\\r\\n\\r\\n")
        headers = [line.split(": ", 1) for line in head.decode().split("\\r\\n")]
        status = next((value for name, value in headers if name == "Status"), "200 OK")
        self.send_response(int(status.split()[0]))
        for name, value in headers:
            if name != "Status":
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = backend

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
'''


class Git:
    """`git` with the options that every method takes given to each call, the scenario's own first."""

    def __init__(self, sdk, home):
        self._git = Uniform(sdk.sandbox.git)
        # A configuration of the scenario's own: all share one sandbox.
        self._common = {"envs": {"HOME": home}, "user": "user", "cwd": home, "timeout": 60}

    def __getattr__(self, name):
        method = getattr(self._git, name)
        return lambda *arguments, **options: method(*arguments, **self._common | options)


@pytest.fixture
def git(sdk, place):
    return Git(sdk, place)


async def repository(sdk, git, path, **files):
    """A repository with one commit of these files, on branch main."""
    await git.init(path, initial_branch="main")
    for name, text in (files or {"a": "one\n"}).items():
        await sdk.files.write(f"{path}/{name}", text)
    await git.add(path)
    await git.commit(path, "first", **WHO)


async def test_a_repository_from_nothing_to_a_commit(sdk, git, place):
    result = await git.init("tree", initial_branch="trunk")
    assert result.exit_code == 0 and await sdk.files.exists(f"{place}/tree/.git")
    await sdk.files.write(f"{place}/tree/žluť a.txt", "one\n")
    await sdk.files.write(f"{place}/tree/b.txt", "two\n")
    status = await git.status("tree")
    assert (status.current_branch, status.detached, status.is_clean, status.has_untracked) == ("trunk", False, False, True)
    await git.add("tree", files=["b.txt"])
    status = await git.status("tree")
    assert {file.status: file.staged for file in status.file_status} == {"added": True, "untracked": False}
    await git.add("tree", all=False)
    await git.commit("tree", "it's the \"first\" 🐎\n\nbody", **WHO)
    assert (await git.status("tree")).is_clean
    log = "git -C tree log -1 --format=%an,%ae,%s,%b"
    assert (await sdk.sh(log, cwd=place)).strip() == "A U Thor,author@example.test,it's the \"first\" 🐎,body"
    await git.commit("tree", "empty", allow_empty=True, **WHO)
    assert (await sdk.sh("git -C tree rev-list --count HEAD", cwd=place)).strip() == "2"
    assert await sdk.sh("stat -c %U tree/.git", cwd=place) == "user\n"


async def test_status_tells_each_kind_of_change(sdk, git, place):
    await repository(sdk, git, f"{place}/r", changed="1\n", deleted="2\n", moved="three\nlines\nof text\n")
    await sdk.sh("echo more >>changed; rm deleted; git mv moved elsewhere; touch fresh", cwd=f"{place}/r")
    status = await git.status(f"{place}/r")
    found = {file.name: (file.status, file.staged, file.renamed_from) for file in status.file_status}
    assert found == {
        "changed": ("modified", False, None), "deleted": ("deleted", False, None),
        "elsewhere": ("renamed", True, "moved"), "fresh": ("untracked", False, None),
    }
    assert (status.has_changes, status.has_staged, status.has_conflicts) == (True, True, False)
    await sdk.sh("git checkout -q --detach", cwd=f"{place}/r")
    assert (await git.status(f"{place}/r")).detached


async def test_branches(sdk, git, place):
    path = f"{place}/r"
    await repository(sdk, git, path)
    await git.create_branch(path, "feature/one")
    branches = await git.branches(path)
    assert (sorted(branches.branches), branches.current_branch) == (["feature/one", "main"], "feature/one")
    await git.commit(path, "ahead", allow_empty=True, **WHO)
    await git.checkout_branch(path, "main")
    with pytest.raises(Exception, match="not fully merged"):
        await git.delete_branch(path, "feature/one")
    await git.delete_branch(path, "feature/one", force=True)
    assert (await git.branches(path)).branches == ["main"]
    with pytest.raises(Exception, match="nowhere"):
        await git.checkout_branch(path, "nowhere")


async def test_reset_and_restore(sdk, git, place):
    path = f"{place}/r"
    await repository(sdk, git, path, a="one\n", b="one\n")
    await sdk.files.write(f"{path}/a", "two\n")
    await sdk.files.write(f"{path}/b", "two\n")
    await git.add(path)
    await git.reset(path, paths=["a"])
    assert {file.name: file.staged for file in (await git.status(path)).file_status} == {"a": False, "b": True}
    await git.restore(path, ["b"], staged=True)
    assert not (await git.status(path)).has_staged
    await git.restore(path, ["b"])
    assert await sdk.files.read(f"{path}/b") == "one\n"
    await git.commit(path, "second", allow_empty=True, **WHO)
    await git.reset(path, mode="hard", target="HEAD~1")
    assert await sdk.files.read(f"{path}/a") == "one\n" and (await git.status(path)).is_clean
    await sdk.files.write(f"{path}/a", "three\n")
    await git.add(path)
    await git.commit(path, "third", **WHO)
    await git.restore(path, ["a"], worktree=True, staged=True, source="HEAD~1")
    assert await sdk.files.read(f"{path}/a") == "one\n"
    with pytest.raises(InvalidArgumentException):
        await git.restore(path, [])


async def test_a_bare_repository_as_the_remote(sdk, git, place):
    work, bare, other = f"{place}/tree", f"{place}/bare.git", f"{place}/other"
    await git.init(bare, bare=True, initial_branch="main")
    await repository(sdk, git, work)
    with pytest.raises(GitUpstreamException):
        await git.pull(work)
    assert await git.remote_get(work, "origin") is None
    await git.remote_add(work, "origin", "/nowhere")
    await git.remote_add(work, "origin", bare, fetch=True, overwrite=True)
    assert await git.remote_get(work, "origin") == bare
    with pytest.raises(GitUpstreamException):
        await git.push(work, set_upstream=False)
    await git.push(work, remote="origin", branch="main")
    status = await git.status(work)
    assert (status.upstream, status.ahead, status.behind) == ("origin/main", 0, 0)
    await git.clone(bare, other, branch="main", depth=1)
    assert await sdk.files.read(f"{other}/a") == "one\n"
    await sdk.files.write(f"{other}/a", "two\n")
    await git.add(other)
    await git.commit(other, "second", **WHO)
    assert (await git.status(other)).ahead == 1
    await git.push(other)
    await git.pull(work, remote="origin", branch="main")
    assert await sdk.files.read(f"{work}/a") == "two\n"
    await git.clone(bare)
    assert await sdk.files.exists(f"{place}/bare/a")


async def test_configuration(sdk, git, place):
    path = f"{place}/r"
    await git.init(path)
    assert await git.get_config("pull.rebase") is None
    await git.set_config("pull.rebase", "false")
    assert await git.get_config("pull.rebase", scope="global") == "false"
    await git.set_config("pull.rebase", "true", scope="local", path=path)
    assert await git.get_config("pull.rebase", scope="local", path=path) == "true"
    await git.configure_user("Me Myself", "me@example.test")
    assert await git.get_config("user.name") == "Me Myself"
    await git.configure_user("Not Me", "not@example.test", scope="local", path=path)
    assert await git.get_config("user.email", scope="local", path=path) == "not@example.test"
    with pytest.raises(InvalidArgumentException):
        await git.set_config("a.b", "c", scope="local")


async def test_a_remote_behind_a_password(sdk, git, place):
    await repository(sdk, git, f"{place}/tree")
    await git.init(f"{place}/served/secret.git", bare=True, initial_branch="main")
    await sdk.files.write(f"{place}/server.py", HTTP_SERVER)
    server = await sdk.start(f"python3 {place}/server.py {place}/served >{place}/port", timeout=120)
    try:
        port = (await sdk.sh(f"until test -s {place}/port; do sleep 0.02; done; cat {place}/port", timeout=20)).strip()
        url = f"http://127.0.0.1:{port}/secret.git"
        password = {"username": "me", "password": "pass-word"}
        await git.remote_add(f"{place}/tree", "origin", url)
        # The SDK calls this one not by its own name.
        with pytest.raises((GitAuthException, CommandExitException), match="[Aa]uthentication"):
            await git.push(f"{place}/tree", remote="origin", branch="main", username="me", password="wrong")
        await git.push(f"{place}/tree", remote="origin", branch="main", **password)
        with pytest.raises(GitAuthException):
            await git.clone(url, f"{place}/refused")
        await git.clone(url, f"{place}/cloned", **password)
        # The password is not kept, unless that is asked for.
        assert await git.remote_get(f"{place}/cloned", "origin") == url
        await git.clone(url, f"{place}/stored", dangerously_store_credentials=True, **password)
        assert "me:" in await git.remote_get(f"{place}/stored", "origin")
        with pytest.raises(GitAuthException):
            await git.pull(f"{place}/cloned")
        await git.pull(f"{place}/cloned", **password)
        await git.dangerously_authenticate(**password, host=f"127.0.0.1:{port}", protocol="http")
        await git.pull(f"{place}/cloned")
        assert await git.get_config("credential.helper") == "store"
    finally:
        await server.kill()
