"""What reaches the browser: events, their order and size, the runs kept for a later page, and the two routes."""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import math
import os
import sys
import threading
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FIXTURE = ROOT / "tests" / "web" / "fixtures" / "events.json"


def _pack(name: str) -> types.ModuleType:
    """A module of the pack, under an alias: `nodes` on its own is ComfyUI's module."""
    alias = "speca_live_under_test"
    if alias not in sys.modules:
        package = types.ModuleType(alias)
        package.__path__ = [str(ROOT)]
        sys.modules[alias] = package
    return importlib.import_module(f"{alias}.{name}")


events = _pack("speca.events")
live = _pack("nodes.live")


class Wire:
    """Stands where the websocket is: keeps what was sent, and lets a test wait for it."""

    def __init__(self) -> None:
        self.payloads: list[dict] = []
        self.connected = True
        self._arrived = threading.Condition()

    def send(self, payload: dict) -> None:
        with self._arrived:
            self.payloads.append(payload)
            self._arrived.notify_all()

    def wait_for(self, condition) -> list[dict]:
        with self._arrived:
            assert self._arrived.wait_for(lambda: condition(self.payloads), timeout=30), self.payloads
            return list(self.payloads)

    def wait_for_end(self, runs: int = 1) -> list[dict]:
        return self.wait_for(lambda sent: sum(p["type"] == "run_ended" for p in sent) >= runs)


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def listener(wire):
    return live.Live(wire.send, lambda: wire.connected, burst_seconds=0.01)


def header(run_id: str = "r0", **changes):
    fields = {
        "settings": {"threshold": 0.2, "order": 2, "threshold_end_factor": 0.35, "max_consecutive": 8},
        "model": "Flux",
        "architecture": "flux",
        "experimental": False,
        "n_blocks": 57,
        "steps": 6,
        "sampler": "euler",
        "n_samples": 1,
        "origin": events.Origin("prompt-1", "workflow-1", "12:5", "3"),
        "run_id": run_id,
        "started_at": 1700000000.0,
    }
    return events.RunHeader(**{**fields, **changes})


def call(index: int, rows=None, **changes):
    rows = (events.Row(0, "full", "warm_up"),) if rows is None else rows
    fields = {
        "step": index,
        "sigma": 1.0 - index / 8,
        "conds": (0, 1),
        "ms": 12.5,
        "full_ms": 11.0,
        "rows": tuple(rows),
    }
    return events.CallRecord(call=index, **{**fields, **changes})


def totals(calls: int, **changes):
    fields = {
        "full": calls,
        "accepted": 0,
        "trusted": 0,
        "rejected": 0,
        "seconds": 0.1 * calls,
        "speedup": None,
        "cache_bytes": 1024,
    }
    return events.Totals(calls=calls, **{**fields, **changes})


def play(listener, run, calls, status="finished") -> None:
    listener.run_started(run)
    for index, made in enumerate(calls):
        listener.call_made(run, made, totals(index + 1))
    listener.run_ended(events.RunRecord(run, status, tuple(calls), totals(len(calls))))


# -- events ------------------------------------------------------------------------------------------------------------


def test_a_run_arrives_whole_and_in_order(listener, wire):
    play(listener, header(), [call(i) for i in range(100)])
    sent = wire.wait_for_end()
    assert [sent[0]["type"], sent[-1]["type"]] == ["run_started", "run_ended"]
    assert [c["call"] for p in sent if p["type"] == "calls" for c in p["calls"]] == list(range(100))
    assert sent[-1]["totals"]["calls"] == 100


def test_a_burst_shares_events(listener, wire):
    play(listener, header(), [call(i) for i in range(100)])
    sent = wire.wait_for_end()
    n_call_events = sum(p["type"] == "calls" for p in sent)
    assert n_call_events < 100
    assert max(len(p["calls"]) for p in sent if p["type"] == "calls") <= live.MAX_CALLS_PER_EVENT


def test_events_of_two_runs_are_not_mixed(listener, wire):
    a, b = header("a"), header("b")
    listener.run_started(a)
    listener.run_started(b)
    for i in range(5):
        listener.call_made(a, call(i), totals(i + 1))
        listener.call_made(b, call(i, sigma=0.5), totals(i + 1))
    for run in (a, b):
        listener.run_ended(events.RunRecord(run, "finished", (), totals(5)))
    sent = wire.wait_for_end(runs=2)
    for name, sigma in (("a", 1.0), ("b", 0.5)):
        calls = [c for p in sent if p["type"] == "calls" and p["run_id"] == name for c in p["calls"]]
        assert [c["call"] for c in calls] == list(range(5))
        assert calls[0]["sigma"] == sigma


def test_every_event_names_version_and_origin(listener, wire):
    play(listener, header(), [call(0)])
    for payload in wire.wait_for_end():
        assert payload["version"] == events.VERSION
        assert payload["run_id"] == "r0"
        assert (payload["prompt_id"], payload["workflow_id"]) == ("prompt-1", "workflow-1")
        assert (payload["node_id"], payload["sampler_node_id"]) == ("12:5", "3")


@pytest.mark.parametrize("n_samples", [1, 8, 64])
def test_an_event_takes_less_than_a_kilobyte_per_call(listener, wire, n_samples):
    rows = [events.Row(i, "rejected", "with_rejected", 0.12345678, 0.087654321, 8.0) for i in range(n_samples)]
    run = header(
        "f" * 32, n_samples=n_samples, origin=events.Origin("f" * 36, "e" * 36, "1234:5678:90", "1234:5678:91")
    )
    play(listener, run, [call(1000 + i, rows) for i in range(40)])
    for payload in wire.wait_for_end():
        assert len(json.dumps(payload)) <= 1024 * max(1, len(payload.get("calls", [])))
        for made in payload.get("calls", []):
            assert made["n_samples"] == n_samples
            assert made["rows"]


def test_nothing_is_sent_while_no_page_is_open(listener, wire):
    wire.connected = False
    play(listener, header("unseen"), [call(i) for i in range(3)])
    wire.connected = True
    play(listener, header("seen"), [call(0)])
    assert {p["run_id"] for p in wire.wait_for_end()} == {"seen"}
    assert listener.run("unseen").totals.calls == 3


def test_a_failing_connection_does_not_reach_the_sampler(wire):
    n_tries = []

    def send(payload):
        n_tries.append(payload)
        if len(n_tries) < 3:
            raise ConnectionResetError
        wire.send(payload)

    listener = live.Live(send, lambda: True, burst_seconds=0.0)
    for name in ("a", "b"):
        play(listener, header(name), [call(0)])
    wire.wait_for(lambda sent: any(p["type"] == "run_ended" and p["run_id"] == "b" for p in sent))


def test_infinite_errors_are_valid_json(listener, wire):
    rows = [events.Row(0, "rejected", "not_finite", math.inf, 0.2)]
    play(listener, header(), [call(0, rows)])
    text = json.dumps(wire.wait_for_end(), allow_nan=False)
    assert "not_finite" in text


# -- the runs kept -----------------------------------------------------------------------------------------------------


def test_a_running_run_is_kept_as_far_as_it_is(listener):
    run = header()
    listener.run_started(run)
    assert (listener.run("r0").status, listener.run("r0").calls) == ("running", ())
    listener.call_made(run, call(0), totals(1))
    assert listener.run("r0").totals.calls == 1
    assert [c.call for c in listener.run("r0").calls] == [0]


def test_a_call_that_is_told_again_is_one_call_with_what_has_become_known(listener, wire):
    run, seen = header(), events.Row(0, "accepted", "within", 0.1, 0.2, judged=0.1, true=0.08)
    listener.run_started(run)
    for made in (call(0), call(1, [events.Row(0, "accepted", "within", 0.1, 0.2)]), call(1, [seen])):
        listener.call_made(run, made, totals(made.call + 1))
    assert [made.rows[0].true for made in listener.run("r0").calls] == [None, 0.08]
    listener.run_ended(listener.run("r0"))
    sent = [made for p in wire.wait_for_end() if p["type"] == "calls" for made in p["calls"]]
    assert sent[-1]["rows"][0] | {"judged": 0.1, "true": 0.08} == sent[-1]["rows"][0]


def test_the_last_twenty_runs_are_kept(listener):
    for i in range(25):
        play(listener, header(f"r{i}"), [call(0)])
    assert [record.header.run_id for record in listener.runs()] == [f"r{i}" for i in range(5, 25)]
    assert listener.run("r4") is None


def test_long_runs_of_large_batches_are_kept_within_bounds(listener, monkeypatch):
    monkeypatch.setattr(live, "KEPT_ROWS", 100)
    rows = [events.Row(i, "full", "warm_up") for i in range(10)]
    for i in range(5):
        play(listener, header(f"r{i}"), [call(k, rows) for k in range(6)])
    assert [record.header.run_id for record in listener.runs()] == ["r4"]
    assert sum(len(c.rows) for record in listener.runs() for c in record.calls) == 60


def test_an_interrupted_run_says_so(listener, wire):
    play(listener, header(), [call(0)], status="interrupted")
    assert wire.wait_for_end()[-1]["status"] == "interrupted"
    assert listener.run("r0").status == "interrupted"


# -- the routes --------------------------------------------------------------------------------------------------------


def _get(routes, *paths):
    web = pytest.importorskip("aiohttp.web")
    test_utils = pytest.importorskip("aiohttp.test_utils")

    async def ask():
        app = web.Application()
        app.add_routes(routes)
        async with test_utils.TestClient(test_utils.TestServer(app)) as client:
            answers = []
            for path in paths:
                async with client.get(path) as answer:
                    answers.append((answer.status, await answer.json()))
            return answers

    return asyncio.run(ask())


def test_the_routes_serve_runs_and_404(listener):
    web = pytest.importorskip("aiohttp.web")
    play(listener, header("r0"), [call(0), call(1)])
    routes = web.RouteTableDef()
    live.register_routes(routes, listener)
    live.register_routes(routes, listener)  # a second copy of the pack must not stop the server
    (status, everything), (_, one), (unknown, body), (odd, _) = _get(
        routes, "/speca/runs", "/speca/runs/r0", "/speca/runs/nothing", "/speca/runs/..%2F..%2Fsecret"
    )
    assert (status, everything["version"]) == (200, events.VERSION)
    assert everything["runs"] == [listener.run("r0").to_json()]
    assert one == everything["runs"][0]
    assert len(one["calls"]) == 2
    assert (unknown, odd) == (404, 404)
    assert set(body) == {"error"}


# -- origin ------------------------------------------------------------------------------------------------------------


def test_without_a_server_the_origin_is_the_node_alone(monkeypatch, caplog):
    monkeypatch.delitem(sys.modules, "server", raising=False)
    with caplog.at_level(logging.WARNING):
        assert live.origin("7").node_id == "7"
    assert not caplog.records


def test_the_origin_is_read_off_the_running_prompt(monkeypatch):
    context = types.SimpleNamespace(prompt_id="p2", node_id="31", list_index=None)
    utils = types.ModuleType("comfy_execution.utils")
    utils.get_executing_context = lambda: context
    monkeypatch.setitem(sys.modules, "comfy_execution", types.ModuleType("comfy_execution"))
    monkeypatch.setitem(sys.modules, "comfy_execution.utils", utils)
    extra = {"extra_pnginfo": {"workflow": {"id": "w2"}}}
    running = {0: (0, "p1", {}, {}, []), 1: (0, "p2", {}, extra, [])}
    instance = types.SimpleNamespace(prompt_queue=types.SimpleNamespace(currently_running=running))
    server = types.ModuleType("server")
    server.PromptServer = types.SimpleNamespace(instance=instance)
    monkeypatch.setitem(sys.modules, "server", server)
    assert live.origin("4:1") == events.Origin("p2", "w2", "4:1", "31")
    running[1] = (0, "p2", {}, {}, [])
    assert live.origin("4:1") == events.Origin("p2", None, "4:1", "31")


# -- the format, seen from both sides ----------------------------------------------------------------------------------


def _every_kind_of_event() -> dict:
    run = header("fixture", n_samples=2)
    a = call(0, [events.Row(0, "full", "warm_up"), events.Row(1, "full", "warm_up")])
    b = call(
        1,
        [
            events.Row(0, "accepted", "within", 0.05, 0.19, judged=0.05, true=0.034),
            events.Row(1, "rejected", "over", 0.31, 0.19),
        ],
        window=0,
    )
    c = call(
        2,
        [events.Row(0, "full", "run_limit", None, 0.18, 8), events.Row(1, "rejected", "not_finite", math.inf, 0.18)],
        conds=(1,),
    )
    sums = totals(3, full=1, rejected=2, speedup=1.8)
    record = events.RunRecord(run, "finished", (a, b, c), sums)
    return {
        "run_started": events.run_started(run),
        "calls": events.calls_made(run, [a, b, c], sums),
        "run_ended": events.run_ended(record),
        "record": record.to_json(),
        "reasons": events.REASONS,
    }


def test_the_fixture_the_browser_is_tested_with_is_what_python_writes():
    """After a change of the format: `WRITE_FIXTURE=1 python dev.py test tests/test_live.py` writes it anew."""
    if os.environ.get("WRITE_FIXTURE"):
        FIXTURE.write_text(json.dumps(_every_kind_of_event(), indent=1) + "\n")
    assert json.loads(FIXTURE.read_text()) == json.loads(json.dumps(_every_kind_of_event()))


@pytest.mark.parametrize("language", ["en", "zh", "ja"])
def test_every_reason_has_words_in_every_language(language):
    import string

    main = json.loads((ROOT / "locales" / language / "main.json").read_text(encoding="utf-8"))
    words = main["speca"]["reason"]
    assert set(words) == set(events.REASONS)
    for code, sentence in words.items():
        wanted = {name for _, name, _, _ in string.Formatter().parse(events.REASONS[code]) if name}
        assert {name for _, name, _, _ in string.Formatter().parse(sentence) if name} == wanted, (code, sentence)
