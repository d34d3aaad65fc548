"""MakeDir, Move and Remove: the error table, ownership, and what a refusal leaves."""

import pytest

from wire import Wire


def row(text):
    return pytest.mark.row("filesystem", text)


def owners(box, *paths):
    return box.sh(f"stat -c '%U:%G %a' {' '.join(paths)}").splitlines()


@row("MakeDir makes the directory and its parents, new ones 0755 and the user's.")
def test_make_dir_with_parents(box, place):
    box.sh(f"mkdir -m 700 {place}/old; chown root:root {place}/old")
    entry = box.call("MakeDir", {"path": f"{place}/old/a/b"})["entry"]
    assert (entry["name"], entry["path"], entry["type"]) == ("b", f"{place}/old/a/b", "FILE_TYPE_DIRECTORY")
    assert owners(box, f"{place}/old", f"{place}/old/a", f"{place}/old/a/b") == ["root:root 700"] + ["user:user 755"] * 2


@row("MakeDir as another user makes directories of that user's.")
def test_make_dir_as_root(box, place):
    status, _ = Wire(box.sandbox, user="root").unary("filesystem.Filesystem/MakeDir", {"path": f"{place}/d"})
    assert status == 200 and owners(box, f"{place}/d") == ["root:root 755"]


@row("MakeDir of a directory that exists, or a link to one: already_exists `directory already exists: P`.")
def test_make_dir_of_a_directory(box, place):
    box.sh(f"mkdir {place}/d; ln -s d {place}/l")
    for name in ("d", "l"):
        path = f"{place}/{name}"
        assert box.refused("MakeDir", {"path": path}) == ("already_exists", f"directory already exists: {path}")


@row("MakeDir where a file is: invalid_argument.")
def test_make_dir_of_a_file(box, place):
    box.sh(f"touch {place}/f")
    code, text = box.refused("MakeDir", {"path": f"{place}/f"})
    assert (code, text) == ("invalid_argument", f"path already exists but it is not a directory: {place}/f")


@row("MakeDir below a file: internal.")
def test_make_dir_below_a_file(box, place):
    box.sh(f"touch {place}/f")
    code, text = box.refused("MakeDir", {"path": f"{place}/f/d"})
    assert code == "internal" and text.endswith("not a directory")
    assert box.stat(f"{place}/f")["type"] == "FILE_TYPE_FILE"


@row("MakeDir where the kernel refuses (a read-only file system): internal.")
def test_make_dir_on_a_read_only_file_system(box):
    code, text = box.refused("MakeDir", {"path": "/sys/new"})
    assert code == "internal" and "/sys/new" in text


@row("Move renames and answers with the entry at its new place.")
def test_move(box, place):
    box.sh(f"printf x > {place}/a")
    entry = box.call("Move", {"source": f"{place}/a", "destination": f"{place}/b"})["entry"]
    assert (entry["name"], entry["path"], entry["size"]) == ("b", f"{place}/b", "1")
    assert box.names(place) == ["b"]


@row("Move makes the destination's parents, 0755 and the user's.")
def test_move_makes_parents(box, place):
    box.sh(f"touch {place}/a; chown root:root {place}/a")
    box.call("Move", {"source": f"{place}/a", "destination": f"{place}/x/y/b"})
    assert owners(box, f"{place}/x", f"{place}/x/y", f"{place}/x/y/b") == ["user:user 755"] * 2 + ["root:root 644"]


@row("Move over an existing file replaces it.")
def test_move_replaces_a_file(box, place):
    box.sh(f"printf new > {place}/a; printf old > {place}/b")
    box.call("Move", {"source": f"{place}/a", "destination": f"{place}/b"})
    assert box.sh(f"cat {place}/b") == "new" and box.names(place) == ["b"]


@row("Move of a link moves the link.")
def test_move_of_a_link(box, place):
    box.sh(f"touch {place}/f; ln -s f {place}/l")
    box.call("Move", {"source": f"{place}/l", "destination": f"{place}/m"})
    assert box.sh(f"readlink {place}/m") == "f\n" and box.names(place) == ["f", "m"]


@row("Move of what is missing: not_found `source file not found: ...`.")
def test_move_of_a_missing_source(box, place):
    source, destination = f"{place}/no", f"{place}/b"
    assert box.refused("Move", {"source": source, "destination": destination}) == (
        "not_found", f"source file not found: rename {source} {destination}: no such file or directory"
    )


@row("Move of anything over a directory: internal `... file exists`, nothing changed.")
@pytest.mark.parametrize("source", ["file", "dir", "full"])
@pytest.mark.parametrize("destination", ["empty", "other"])
def test_move_over_a_directory(box, place, source, destination):
    box.sh(f"cd {place}; touch file; mkdir dir full empty other; touch full/f other/g")
    code, text = box.refused("Move", {"source": f"{place}/{source}", "destination": f"{place}/{destination}"})
    assert (code, text) == (
        "internal", f"error renaming: rename {place}/{source} {place}/{destination}: file exists"
    )
    assert box.names(place, 2) == ["dir", "empty", "file", "full", "full/f", "other", "other/g"]


@row("Move of a directory over a file, or into itself: internal, nothing changed.")
def test_move_that_the_kernel_refuses(box, place):
    box.sh(f"cd {place}; touch f; mkdir d")
    assert box.refused("Move", {"source": f"{place}/d", "destination": f"{place}/f"}) == (
        "internal", f"error renaming: rename {place}/d {place}/f: not a directory"
    )
    assert box.refused("Move", {"source": f"{place}/d", "destination": f"{place}/d/e"}) == (
        "internal", f"error renaming: rename {place}/d {place}/d/e: invalid argument"
    )
    assert box.names(place, 2) == ["d", "f"]


@row("Move to another file system: internal `invalid cross-device link`, nothing changed.")
def test_move_across_file_systems(box, place):
    box.sh(f"printf x > {place}/f; mkdir {place}/d")
    for name in ("f", "d"):
        code, text = box.refused("Move", {"source": f"{place}/{name}", "destination": f"/dev/shm/{name}"})
        assert code == "internal" and text.endswith("invalid cross-device link")
    assert box.names(place) == ["d", "f"] and box.names("/dev/shm") == []


@row("Move of a directory of the image, which the kernel refuses, falls back to copy and delete.")
def test_move_of_a_directory_of_the_image(box, place):
    listing = "find . -printf '%P %y %m %U %G %s %t %l\\n' | sort"
    box.sh(
        "cd /usr/share/doc && test ! -e /moved && chmod 711 bash && setpriv --help >/dev/null"
        " && touch -d '2001-02-03 04:05:06.789 UTC' bash && ln -s nowhere bash/link && mkfifo bash/pipe"
    )
    # Kept open and compared: what was copied is the same to the last attribute.
    before = box.sh(f"cd /usr/share/perl5 && {listing}")
    assert before.count("\n") > 5
    entry = box.call("Move", {"source": "/usr/share/perl5", "destination": f"{place}/perl5"})["entry"]
    assert (entry["path"], entry["type"]) == (f"{place}/perl5", "FILE_TYPE_DIRECTORY")
    assert box.sh(f"cd {place}/perl5 && {listing}") == before
    assert box.refused("Stat", {"path": "/usr/share/perl5"})[0] == "not_found"
    # One that the sandbox has changed already is half in each layer.
    before = box.sh(f"cd /usr/share/doc/bash && {listing}")
    box.call("Move", {"source": "/usr/share/doc/bash", "destination": f"{place}/bash"})
    assert box.sh(f"cd {place}/bash && {listing}") == before
    assert box.names(place) == ["bash", "perl5"]


@row("Move of a directory of the image onto a directory is refused like any other.")
def test_a_refused_move_of_the_image(box, place):
    box.sh(f"mkdir {place}/there")
    code, text = box.refused("Move", {"source": "/var/lib/dpkg", "destination": f"{place}/there"})
    assert code == "internal" and text.endswith("file exists")
    assert box.stat("/var/lib/dpkg")["type"] == "FILE_TYPE_DIRECTORY" and box.names(f"{place}/there") == []


@row("Remove takes files, links and whole trees; what a link leads to stays.")
def test_remove(box, place):
    box.sh(f"cd {place}; touch f; mkdir -p d/e kept; touch d/e/g kept/k; ln -s ../kept d/l; ln -s kept l")
    for name in ("f", "d", "l"):
        assert box.call("Remove", {"path": f"{place}/{name}"}) == {}
    assert box.names(place, 2) == ["kept", "kept/k"]


@row("Remove of what is missing succeeds.")
def test_remove_of_a_missing_path(box, place):
    assert box.call("Remove", {"path": f"{place}/no"}) == {}
    assert box.call("Remove", {"path": f"{place}/no/no"}) == {}


@row("Remove that the kernel refuses: internal `error removing file or directory: ...`.")
@pytest.mark.parametrize("path", ["/etc/hostname/x", "/dev/pts", "/proc/version"])
def test_remove_that_fails(box, path):
    code, text = box.refused("Remove", {"path": path})
    assert code == "internal" and text.startswith("error removing file or directory: ")


@row("Remove of a path that ends in `/.` is refused before anything is removed.")
def test_remove_of_a_dot(box, place):
    box.sh(f"mkdir {place}/d; touch {place}/d/f")
    assert box.refused("Remove", {"path": f"{place}/d/."}) == (
        "internal", f"error removing file or directory: RemoveAll {place}/d/.: invalid argument"
    )
    assert box.names(place, 2) == ["d", "d/f"]
