"""Which row of the contract each test shows, and the tables of docs/compatibility.md made of it.

A test carries `@pytest.mark.row(section, text)`. Several tests may show one row; it passes when all
do. What cannot be met is a strict xfail, and its reason is what the table says. A whole run compares
the tables with the document; `FIRKIN_RENDER=1` writes them instead.
"""

import os
import pathlib

import pytest

DOCUMENT = pathlib.Path(__file__).resolve().parents[3] / "docs" / "compatibility.md"
SECTIONS = {
    "process": "Process RPCs",
    "filesystem": "Filesystem RPCs",
    "http": "HTTP API of the sandbox",
    "edge": "Edge",
    "missed": "The details most often missed",
}
FOUND = pytest.StashKey()


def begin(config):
    config.addinivalue_line("markers", "row(section, text): the row of the contract that the test shows")
    config.stash[FOUND] = {}


def note(item, report):
    """Keeps the outcome of a test's rows; the first that is no pass stays."""
    if report.when != "call" and not report.failed and not report.skipped:
        return
    if hasattr(report, "wasxfail"):
        outcome = f"no: {report.wasxfail.removeprefix('reason: ')}"
    elif report.passed:
        outcome = "pass"
    else:
        outcome = "FAILED" if report.failed else "SKIPPED"
    test = item.nodeid.split("tests/sdk/python/")[-1].split("[")[0]
    for marker in item.iter_markers("row"):
        section, text = marker.args
        assert section in SECTIONS, f"{item.nodeid}: there is no section {section!r}"
        outcomes = item.config.stash[FOUND].setdefault((section, text), {})
        if outcomes.get(test, "pass") == "pass":
            outcomes[test] = outcome


def tables(found):
    """The tables, in the order in which their rows were tested."""
    lines = []
    for section, title in SECTIONS.items():
        rows = [(text, tests) for (of, text), tests in found.items() if of == section]
        lines += [f"### {title}", "", "| row | here | shown by |", "| --- | --- | --- |"]
        for text, tests in rows:
            verdict = next((outcome for outcome in tests.values() if outcome != "pass"), "pass")
            names = ", ".join(f"`{test.split('/')[-1]}`" for test in tests)
            lines.append(f"| {text.replace('|', chr(92) + '|')} | {verdict} | {names} |")
        lines.append("")
    return "\n".join(lines)


def compare(found):
    """The document's tables against what was found."""
    begin_mark, end_mark = "<!-- rows: made by the tests -->\n", "<!-- end of rows -->"
    text = DOCUMENT.read_text(encoding="utf-8")
    head, rest = text.split(begin_mark)
    written, tail = rest.split(end_mark)
    made = "\n" + tables(found)
    if os.environ.get("FIRKIN_RENDER"):
        DOCUMENT.write_text(head + begin_mark + made + end_mark + tail, encoding="utf-8")
        return
    assert written == made, "docs/compatibility.md does not say what the tests found: FIRKIN_RENDER=1 writes it"
