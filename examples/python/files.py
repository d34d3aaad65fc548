"""Write, read, list and watch files. Needs E2B_API_URL, E2B_SANDBOX_URL and E2B_API_KEY."""
from e2b import FilesystemEventType, Sandbox

with Sandbox.create() as sandbox:
    watch = sandbox.files.watch_dir("/home/user")
    info = sandbox.files.write("notes.txt", "first line\n")
    assert info.path == "/home/user/notes.txt", info
    assert sandbox.files.read("notes.txt") == "first line\n"
    assert bytes(sandbox.files.read("notes.txt", format="bytes")) == b"first line\n"
    names = [entry.name for entry in sandbox.files.list("/home/user")]
    assert "notes.txt" in names, names
    print("files:", ", ".join(sorted(names)))

    sandbox.files.make_dir("deep/er")
    sandbox.files.rename("notes.txt", "deep/er/notes.txt")
    assert sandbox.files.exists("deep/er/notes.txt") and not sandbox.files.exists("notes.txt")

    events = watch.get_new_events()
    assert [e.type for e in events if e.name == "notes.txt"][:3] == [
        FilesystemEventType.CREATE,
        FilesystemEventType.CHMOD,
        FilesystemEventType.WRITE,
    ], events
    print("events:", ", ".join(f"{event.type.value} {event.name}" for event in events))
    watch.stop()
    sandbox.files.remove("deep")
    assert not sandbox.files.exists("deep")
print("ok")
