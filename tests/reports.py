"""What the processes that run tests, pytest-xdist's, tell the one that prints.

By themselves they tell six things of each of ten thousand tests, and three of them nothing: that
it begins, and that its set-up and its end went well, in no time. To tell takes longer than many a
test.
"""

from typing import Any, Final

import pytest

#: Seconds below which no list of the slowest has a phase of a test.
_UNLISTED: Final = 0.005


def tell_less(config: pytest.Config) -> None:
    """Leave out what is not shown, in a process that runs tests for another."""
    if config.option.verbose > 0 or config.getoption("xmlpath", None):
        return  # these show all
    [interactor] = [
        plugin
        for plugin in config.pluginmanager.get_plugins()
        if type(plugin).__name__ == "WorkerInteractor"
    ]
    send = interactor.sendevent

    def send_what_is_shown(name: str, **event: Any) -> None:
        if name != "logstart" and not (name == "testreport" and _says_nothing(event["data"])):
            send(name, **event)

    interactor.sendevent = send_what_is_shown


def _says_nothing(report: dict[str, Any]) -> bool:
    return (
        report["when"] != "call"
        and report["outcome"] == "passed"
        and report["duration"] < _UNLISTED
        and not report["sections"]
    )
