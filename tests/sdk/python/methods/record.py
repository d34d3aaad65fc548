"""Which public methods and parameters of the SDK the scenarios call: a wrapper around each keeps a record."""

import functools
import importlib
import inspect
import sys

FLAVOURS = {"sync": "e2b.sandbox_sync", "async": "e2b.sandbox_async"}
FILES = ("commands.command", "commands.command_handle", "commands.command_input_handle", "commands.pty",
         "filesystem.filesystem", "filesystem.watch_handle", "git")
# What is a word of the class but no method of it, with the reason why no scenario says it.
LEFT_OUT = {
    "request_timeout": "a deadline that the client keeps by itself; one scenario shows it",
}
calls = {}


def classes(flavour):
    """The SDK's classes with methods for what is in a sandbox, by name."""
    found = {}
    for file in FILES:
        try:
            module = importlib.import_module(f"{FLAVOURS[flavour]}.{file}")
        except ModuleNotFoundError:
            continue  # A version that has no such handle yet.
        for name, kind in inspect.getmembers(module, inspect.isclass):
            if kind.__module__ == module.__name__ and not name.startswith("_"):
                found[name] = kind
    return found


def public(kind):
    """(name, what it is) of a class's own public methods and properties."""
    for name, member in list(vars(kind).items()):
        if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
            yield name, member


def _note(key, names):
    # What the SDK calls by itself (git runs commands, a handle's kill is the module's) shows nothing.
    caller = sys._getframe(2).f_globals["__name__"]
    if not caller.startswith("e2b."):
        calls.setdefault(key, set()).update(names)


def _watched(key, member):
    if isinstance(member, property):
        def read(self):
            _note(key, ())
            return member.fget(self)

        return property(read)
    signature = inspect.signature(member)

    @functools.wraps(member)
    def call(*arguments, **options):
        _note(key, signature.bind(*arguments, **options).arguments)
        return member(*arguments, **options)

    return call


def begin():
    for flavour in FLAVOURS:
        for name, kind in classes(flavour).items():
            for method, member in public(kind):
                key = (flavour, name, method)
                setattr(kind, method, _watched(key, member))


def unseen():
    """The methods that nothing called, and the parameters that no call gave."""
    methods, parameters = [], []
    for flavour in FLAVOURS:
        for name, kind in classes(flavour).items():
            for method, member in public(kind):
                key = (flavour, name, method)
                label = ".".join(key)
                if key not in calls:
                    methods.append(label)
                elif not isinstance(member, property):
                    given = calls[key] | {"self"} | set(LEFT_OUT)
                    parameters += [f"{label}({word})" for word in inspect.signature(member).parameters if word not in given]
    return methods, parameters
