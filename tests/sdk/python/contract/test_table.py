"""The tables of docs/compatibility.md are what the row tests found. Runs last."""

import pytest

import rows


def test_the_document_says_what_the_tests_found(request):
    config = request.config
    if config.option.keyword or getattr(config.option, "lf", False) or not config.stash[rows.FOUND]:
        pytest.skip("only a whole run can tell")
    shown = {path.name for path in (request.path.parent).glob("test_*.py")}
    ran = {item.path.name for item in request.session.items}
    if not shown <= ran:
        pytest.skip("only a whole run can tell")
    rows.compare(config.stash[rows.FOUND])
