"""A pytest plugin: one table of models x checks at the end of a run of the contract suite.

`test_contract.py` registers it. A cell is `ok`, `FAIL`, or `-` where the check does not apply to the model.
"""

from __future__ import annotations

from typing import Any

SUITE = "test_contract.py::TestContract::"
OUTCOMES = {"passed": "ok", "failed": "FAIL", "skipped": "-"}

_cells: dict[str, dict[str, str]] = {}


def pytest_runtest_logreport(report: Any) -> None:
    _, _, test = report.nodeid.partition(SUITE)
    if not test.endswith("]") or not (report.when == "call" or report.outcome != "passed"):
        return
    check, _, model = test[:-1].partition("[")
    cells = _cells.setdefault(model, {})
    if cells.get(check) != "FAIL":
        cells[check] = OUTCOMES[report.outcome]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not _cells:
        return
    terminalreporter.section("contract: models x checks")
    for line in rendered(_cells):
        terminalreporter.line(line)


def rendered(cells: dict[str, dict[str, str]]) -> list[str]:
    """The table's lines: {model: {check: outcome}} -> header, one line for each model, and the sums."""
    checks = list(dict.fromkeys(check for of_model in cells.values() for check in of_model))
    titles = [check.removeprefix("test_").replace("_", " ") for check in checks]
    width = max(len(model) for model in cells)
    numbers = [f"{i:>4}" for i in range(1, len(checks) + 1)]
    legend = [f"{i:>3}  {title}" for i, title in enumerate(titles, 1)]
    lines = [*legend, " " * width + " ".join(numbers)]
    for model, of_model in cells.items():
        lines.append(model.ljust(width) + " ".join(f"{of_model.get(check, ''):>4}" for check in checks))
    passed = sum(all(outcome != "FAIL" for outcome in of_model.values()) for of_model in cells.values())
    lines.append(f"{passed} of {len(cells)} models keep the contract")
    return lines
