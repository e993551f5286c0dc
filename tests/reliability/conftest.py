"""What the reliability tests found, told at the end of a run."""

import pytest


@pytest.fixture
def tell(record_property):
    """Return a function whose text is printed when all tests are done."""
    return lambda text: record_property("reliability", text)


def pytest_terminal_summary(terminalreporter):
    told = [
        value
        for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
        for name, value in report.user_properties
        if name == "reliability" and report.when == "call"
    ]
    if told:
        terminalreporter.section("reliability")
        for line in told:
            terminalreporter.line(line)
