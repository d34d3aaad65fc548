"""No public method of the SDK's version at hand is without a scenario."""

import pathlib

import pytest

import record


def test_every_public_method_and_parameter_was_called(request):
    here = pathlib.Path(__file__).parent
    collected = {item.path for item in request.session.items}
    if collected != set(here.glob("test_*.py")) or request.config.option.keyword:
        pytest.skip("only a run of all scenarios can tell")
    methods, parameters = record.unseen()
    assert not methods, f"no scenario calls {', '.join(methods)}"
    assert not parameters, f"no scenario gives {', '.join(parameters)}"
