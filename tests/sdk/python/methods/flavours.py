"""The synchronous and the asynchronous SDK behind one face, so that a scenario is written once.

A scenario awaits everything. What the two flavours do differently (callbacks, input streams,
watches) is a method of `Sdk`; all else goes to the SDK's own objects as it stands.
"""

import asyncio
import importlib.metadata
import inspect
import re
import time

import pytest

from e2b import AsyncSandbox, Sandbox

VERSION = importlib.metadata.version("e2b")
MODULES = ("commands", "pty", "files", "git")
PATIENCE_SECONDS = 20


class Uniform:
    """An object of the SDK whose methods are awaited, whatever its flavour."""

    def __init__(self, thing):
        self.thing = thing

    def __getattr__(self, name):
        found = getattr(self.thing, name)
        if not callable(found):
            return found

        async def call(*arguments, **options):
            answer = found(*arguments, **options)
            return await answer if inspect.isawaitable(answer) else answer

        return call


class Handle(Uniform):
    """A command or terminal that runs, with what it printed to the listeners it was given."""

    def __init__(self, thing, listeners):
        super().__init__(thing)
        self._listeners = listeners

    async def wait(self):
        """The result; the synchronous SDK calls the listeners only here."""
        answer = self.thing.wait(**self._listeners)
        return await answer if inspect.isawaitable(answer) else answer


class Terminal(Handle):
    """A terminal with all that it printed."""

    def __init__(self, thing, output, listeners):
        super().__init__(thing, listeners)
        self.output = output

    @property
    def text(self):
        """The output without what the shell says about bracketed paste."""
        return re.sub("\x1b\\[\\?2004[hl]\r?", "", self.output.decode(errors="replace"))

    async def until(self, text):
        """Waits until the terminal has printed the text; it must be running."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        if hasattr(self.thing, "__iter__"):
            for _, _, chunk in self.thing:
                self.output.extend(chunk or b"")
                if text in self.text:
                    return
                assert time.monotonic() < deadline, self.text
        while text not in self.text:
            assert time.monotonic() < deadline, self.text
            await asyncio.sleep(0.01)


class Watch:
    """A watched directory and the events so far."""

    def __init__(self, handle, seen):
        self._handle = handle
        self.seen = seen

    async def until(self, *wanted):
        """Waits for events; each is (type, name). Answers all that came so far, in order."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            if hasattr(self._handle, "get_new_events"):
                self.seen += self._handle.get_new_events()
            told = [(event.type.value, event.name) for event in self.seen]
            if all(event in told for event in wanted):
                return told
            assert time.monotonic() < deadline, (wanted, told)
            await asyncio.sleep(0.01)

    async def stop(self):
        answer = self._handle.stop()
        if inspect.isawaitable(answer):
            await answer


class Sdk:
    """One flavour of the SDK with a sandbox that all scenarios of a run share."""

    def __init__(self, flavour, sandbox):
        self.flavour = flavour
        self.asynchronous = flavour == "async"
        self.sandbox = sandbox

    @classmethod
    async def create(cls, flavour, **options):
        kind = AsyncSandbox if flavour == "async" else Sandbox
        answer = kind.create(**({"timeout": 300} | options))
        return cls(flavour, await answer if inspect.isawaitable(answer) else answer)

    @property
    def kind(self):
        """The class whose methods do without a sandbox at hand."""
        return Uniform(type(self.sandbox))

    @property
    def box(self):
        return Uniform(self.sandbox)

    def __getattr__(self, name):
        if name in MODULES:
            return Uniform(getattr(self.sandbox, name))
        raise AttributeError(name)

    def needs(self, module, method, parameter=None):
        """Skips a scenario about what this version does not have yet."""
        found = getattr(type(getattr(self.sandbox, module)), method, None)
        if found is None:
            pytest.skip(f"e2b {VERSION} has no {module}.{method}")
        if parameter and parameter not in inspect.signature(found).parameters:
            pytest.skip(f"e2b {VERSION} has no {parameter} in {module}.{method}")

    async def sh(self, command, **options):
        return (await self.commands.run(command, **options)).stdout

    def _listen(self, **listeners):
        """(what goes with the call that starts, what goes with the one that waits)"""
        given = {name: listener for name, listener in listeners.items() if listener}
        return (given, {}) if self.asynchronous else ({}, given)

    async def start(self, command, on_stdout=None, on_stderr=None, **options):
        early, late = self._listen(on_stdout=on_stdout, on_stderr=on_stderr)
        return Handle(await self.commands.run(command, background=True, **early, **options), late)

    async def connect(self, pid, on_stdout=None, **options):
        early, late = self._listen(on_stdout=on_stdout)
        return Handle(await self.commands.connect(pid, **early, **options), late)

    async def terminal(self, size, **options):
        output = bytearray()
        early, late = ({"on_data": output.extend}, {}) if self.asynchronous else ({}, {"on_pty": output.extend})
        return Terminal(await self.pty.create(size, **early, **options), output, late)

    async def reconnect(self, pid, **options):
        output = bytearray()
        early, late = ({"on_data": output.extend}, {}) if self.asynchronous else ({}, {"on_pty": output.extend})
        return Terminal(await self.pty.connect(pid, **early, **options), output, late)

    async def pour(self, module, pid, chunks, **options):
        """All chunks down one input stream, which is then ended."""
        module = getattr(self.sandbox, module)
        if not self.asynchronous:
            module.stream_input(pid, chunks, **options)
            return
        stream = module.stream_input(pid, **options)
        for chunk in chunks:
            await stream.send(chunk)
        await stream.close()

    async def watch(self, path, **options):
        seen = []
        early = {"on_event": seen.append} if self.asynchronous else {}
        return Watch(await self.files.watch_dir(path, **early, **options), seen)

    async def chunks(self, path, **options):
        """The chunks of a streamed read."""
        stream = await self.files.read(path, format="stream", **options)
        return [chunk async for chunk in stream] if self.asynchronous else list(stream)
