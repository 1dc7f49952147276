"""The line in the log."""

from dataclasses import replace

from fake_network import HEADER, REUSE, run
from speca.events import RunRecord, Totals
from speca.words import summary_line


def test_the_log_line():
    _, _, session = run(REUSE, [8.0, 9.0, 10.0, 11.0, 12.0, 13.0])
    line = summary_line(session.close("finished"))
    assert line.startswith("SpeCa: 6 calls: 2 full, 3 accepted, 1 rejected; ")
    assert line.endswith("x (measured); cache 6.4e-05 MB")


def test_the_log_line_of_a_large_model_as_the_readme_has_it():
    totals = Totals(
        calls=28, full=11, accepted=15, trusted=0, rejected=2, seconds=9.8, speedup=2.1, cache_bytes=170_000_000
    )
    line = summary_line(RunRecord(HEADER, "finished", (), totals))
    assert line == "SpeCa: 28 calls: 11 full, 15 accepted, 2 rejected; 2.1x (measured); cache 0.17 GB"


def test_the_log_line_says_why_nothing_was_skipped():
    _, _, session = run(replace(REUSE, threshold=1e-6), [0.5, 1.0, 2.0, 3.0])
    line = summary_line(session.close("interrupted"))
    assert "(interrupted); nothing skipped: 2x warm-up; 2x error 0.25 over 1e-06" in line
