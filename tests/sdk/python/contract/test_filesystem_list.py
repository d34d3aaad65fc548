"""ListDir: depth, order, links, and its part of the error table."""

import pytest


def row(text):
    return pytest.mark.row("filesystem", text)


@pytest.fixture
def tree(box, place):
    box.sh(
        f"cd {place}; mkdir -p subdir1/subdir1_1 subdir1/subdir1_2 subdir2; touch file1.txt subdir1/file2.txt"
        " subdir1/subdir1_1/deep subdir2/x", user="user"
    )
    return place


@row("ListDir of depth 0 and 1 are the same: the directory's own entries.")
def test_depth_zero_is_one(box, tree):
    assert box.names(tree) == box.names(tree, 1) == ["file1.txt", "subdir1", "subdir2"]


@row("ListDir of depth N has the entries of at most N components, depth first, names sorted by bytes.")
def test_depth_and_order(box, tree):
    two = ["file1.txt", "subdir1", "subdir1/file2.txt", "subdir1/subdir1_1", "subdir1/subdir1_2", "subdir2", "subdir2/x"]
    assert box.names(tree, 2) == two
    assert box.names(tree, 3) == two[:4] + ["subdir1/subdir1_1/deep"] + two[4:]
    assert box.names(tree, 4_294_967_295) == box.names(tree, 3)


@row("Names sort by bytes, a directory before those that its name begins.")
def test_names_sort_by_bytes(box, place):
    box.sh(f"cd {place}; mkdir a; touch a/z a.b A \u00e9 Z _ '~' 10 9")
    assert box.names(place, 2) == ["10", "9", "A", "Z", "_", "a", "a/z", "a.b", "~", "\u00e9"]


@row("ListDir of an empty directory is an empty answer; the root itself is never listed.")
def test_an_empty_directory(box, place):
    assert box.call("ListDir", {"path": place}) == {}


@row("Listed entries are described as Stat describes them.")
def test_entries_are_whole(box, tree):
    for entry in box.call("ListDir", {"path": tree, "depth": 3})["entries"]:
        assert entry == box.stat(entry["path"])


@row("A root that is a link is followed; the paths keep the prefix that was asked for.")
def test_a_linked_root(box, tree):
    box.sh(f"ln -s {tree} {tree}-link; ln -s {tree}-link {tree}-link2")
    for link in (f"{tree}-link", f"{tree}-link2"):
        entries = box.call("ListDir", {"path": link, "depth": 2})["entries"]
        assert [entry["path"] for entry in entries][:3] == [f"{link}/file1.txt", f"{link}/subdir1", f"{link}/subdir1/file2.txt"]


@row("Links inside are listed and not followed.")
def test_links_inside_are_not_followed(box, tree):
    box.sh(f"ln -s subdir1 {tree}/link; ln -s . {tree}/self")
    names = box.names(tree, 3)
    assert "link" in names and "self" in names and not [name for name in names if name.startswith(("link/", "self/"))]


@row("Broken links are listed, without a type.")
def test_broken_links_are_listed(box, place):
    box.sh(f"ln -s nowhere {place}/l")
    (entry,) = box.call("ListDir", {"path": place})["entries"]
    assert "type" not in entry and entry["symlinkTarget"] == f"{place}/l"


@row("Relative roots are reported by the path they resolve to.")
def test_relative_roots(box, tree):
    name = tree.rsplit("/", 1)[1]
    entries = box.call("ListDir", {"path": f"{name}/./subdir2"})["entries"]
    assert [entry["path"] for entry in entries] == [f"{tree}/subdir2/x"]


@row("ListDir of what is missing: not_found.")
def test_a_missing_directory(box, place):
    assert box.refused("ListDir", {"path": f"{place}/no"}) == (
        "not_found", f"path not found: lstat {place}/no: no such file or directory"
    )


@row("ListDir of a file: invalid_argument `path is not a directory: P`.")
def test_a_file_is_no_directory(box, place):
    box.sh(f"touch {place}/f; ln -s f {place}/l")
    assert box.refused("ListDir", {"path": f"{place}/f"}) == ("invalid_argument", f"path is not a directory: {place}/f")
    assert box.refused("ListDir", {"path": f"{place}/l"})[0] == "invalid_argument"


@row("ListDir of links in a circle: failed_precondition.")
def test_links_in_a_circle(box, place):
    box.sh(f"cd {place}; ln -s b a; ln -s a b")
    assert box.refused("ListDir", {"path": f"{place}/a"}) == (
        "failed_precondition", f'cyclic symlink or chain >255 links at "{place}/a"'
    )


@row("ListDir below a file: internal.")
def test_below_a_file(box):
    assert box.refused("ListDir", {"path": "/etc/hostname/x"}) == (
        "internal", "error resolving symlink: lstat /etc/hostname/x: not a directory"
    )


@row("Entries that vanish during the walk are left out; the walk goes on.")
def test_vanishing_entries(box, place):
    # A writer makes and removes entries all the while; only what stays must always be there.
    box.sh(f"cd {place}; mkdir a z; touch a/stays z/stays")
    writer = box.sandbox.commands.run(
        f"cd {place}; while :; do mkdir -p m/n; touch m/f m/n/f; rm -r m; done", background=True, timeout=60
    )
    try:
        for _ in range(200):
            names = box.names(place, 3)
            assert [name for name in names if not name.startswith("m")] == ["a", "a/stays", "z", "z/stays"]
    finally:
        writer.kill()


@row("A directory of 20,000 entries is listed whole.")
def test_a_large_directory(box, place):
    box.sh(f"cd {place}; seq -w 20000 | xargs touch")
    names = box.names(place)
    assert len(names) == 20000 and names == sorted(names)


@row("/proc can be listed, with the processes that come and go.")
def test_proc_is_listed(box):
    entries = box.call("ListDir", {"path": "/proc", "depth": 2})["entries"]
    assert {"/proc/1", "/proc/self", "/proc/1/status"} <= {entry["path"] for entry in entries}
