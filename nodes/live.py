"""Tells the browser about runs while they happen, and keeps the last of them for a page that comes later.

The only file that touches ComfyUI's server. Without a server (a script, a test) the listener still keeps the runs
and nothing is sent.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import queue
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

from ..speca import events

EVENT = "speca"
KEPT_RUNS = 20
# A run of 1000 calls over a batch of 64 is held once; rows are what its memory goes into.
KEPT_ROWS = 200_000
# Calls that come faster than a screen can show them share an event.
BURST_SECONDS = 0.05
MAX_CALLS_PER_EVENT = 32
MAX_EVENT_BYTES = 1000


class Live:
    """A `speca.events.Listener` that costs the sampling thread one lock and one queue entry per call.

    `send(payload)` is called on a background thread, only while `listening()` is true. `runs()` and `run(run_id)`
    return frozen records and may be called from any thread.
    """

    def __init__(
        self,
        send: Callable[[dict[str, Any]], None],
        listening: Callable[[], bool],
        burst_seconds: float = BURST_SECONDS,
    ) -> None:
        self._send = send
        self._listening = listening
        self._burst_seconds = burst_seconds
        self._lock = threading.Lock()
        self._runs: OrderedDict[str, _Run] = OrderedDict()
        self._outbox: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    # -- on the sampling thread ------------------------------------------------------------------------------------

    def run_started(self, header: events.RunHeader) -> None:
        with self._lock:
            self._runs[header.run_id] = _Run(header)
            self._forget_oldest()
        self._post("started", header)

    def call_made(self, header: events.RunHeader, call: events.CallRecord, totals: events.Totals) -> None:
        with self._lock:
            run = self._runs.get(header.run_id)
            if run is None:
                run = self._runs[header.run_id] = _Run(header)
            if call.call not in run.calls:
                run.n_rows += len(call.rows)
            run.calls[call.call] = call
            run.totals = totals
            self._forget_oldest()
        self._post("call", header, call, totals)

    def run_ended(self, record: events.RunRecord) -> None:
        with self._lock:
            self._runs[record.header.run_id] = _Run.of(record)
            self._forget_oldest()
        self._post("ended", record)

    # -- for the route ---------------------------------------------------------------------------------------------

    def runs(self) -> list[events.RunRecord]:
        """The runs kept, oldest first, the running ones as far as they are."""
        with self._lock:
            return [run.record() for run in self._runs.values()]

    def run(self, run_id: str) -> events.RunRecord | None:
        with self._lock:
            run = self._runs.get(run_id)
            return None if run is None else run.record()

    # ---------------------------------------------------------------------------------------------------------------

    def _forget_oldest(self) -> None:
        n_rows = sum(run.n_rows for run in self._runs.values())
        while len(self._runs) > KEPT_RUNS or (n_rows > KEPT_ROWS and len(self._runs) > 1):
            _, oldest = self._runs.popitem(last=False)
            n_rows -= oldest.n_rows

    def _post(self, *item: Any) -> None:
        if not self._listening():
            return
        if self._thread is None:
            # A daemon: a run that is still being told of must not keep ComfyUI from quitting.
            self._thread = threading.Thread(target=self._deliver, name="speca-live", daemon=True)
            self._thread.start()
        self._outbox.put(item)

    def _deliver(self) -> None:
        while True:
            items = [self._outbox.get()]
            time.sleep(self._burst_seconds)
            while True:
                try:
                    items.append(self._outbox.get_nowait())
                except queue.Empty:
                    break
            for payload in _payloads(items):
                try:
                    self._send(payload)
                except Exception:
                    logging.debug("SpeCa: an event could not be sent", exc_info=True)


class _Run:
    """A run while it is kept: `events.RunRecord`, still growing."""

    def __init__(self, header: events.RunHeader) -> None:
        self.header = header
        self.status: events.Status = "running"
        self.calls: dict[int, events.CallRecord] = {}
        self.totals = events.Totals(0, 0, 0, 0, 0, 0.0, None, 0)
        self.n_rows = 0

    @classmethod
    def of(cls, record: events.RunRecord) -> _Run:
        run = cls(record.header)
        run.status = record.status
        run.calls = {call.call: call for call in record.calls}
        run.totals = record.totals
        run.n_rows = sum(len(call.rows) for call in record.calls)
        return run

    def record(self) -> events.RunRecord:
        return events.RunRecord(self.header, self.status, tuple(self.calls.values()), self.totals)


def _payloads(items: Iterable[tuple[Any, ...]]) -> Iterable[dict[str, Any]]:
    """The events for a burst of posts, in order; calls of one run that follow each other share an event."""
    waiting: list[tuple[Any, ...]] = []

    def flush() -> Iterable[dict[str, Any]]:
        if waiting:
            _, header, _, totals = waiting[-1]
            yield _fitted(events.calls_made(header, [call for _, _, call, _ in waiting], totals))
            waiting.clear()

    for item in items:
        if item[0] == "call":
            if waiting and (waiting[0][1].run_id != item[1].run_id or len(waiting) >= MAX_CALLS_PER_EVENT):
                yield from flush()
            waiting.append(item)
            continue
        yield from flush()
        yield events.run_started(item[1]) if item[0] == "started" else events.run_ended(item[1])
    yield from flush()


def _fitted(payload: dict[str, Any]) -> dict[str, Any]:
    """`payload` with so few rows per call that it takes at most `MAX_EVENT_BYTES` per call.

    The page sees from `n_samples` that rows are missing and asks the route for them once the run has ended.
    """
    budget = MAX_EVENT_BYTES * len(payload["calls"])
    n_rows = max((len(call["rows"]) for call in payload["calls"]), default=0)
    while n_rows > 1 and len(json.dumps(payload)) > budget:
        n_rows -= 1
        for call in payload["calls"]:
            del call["rows"][n_rows:]
    return payload


def _server() -> Any:
    # Looked up, not imported: where no server runs, importing ComfyUI's server module would start half of one.
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def _send(payload: dict[str, Any]) -> None:
    server = _server()
    if server is not None:
        server.send_sync(EVENT, payload, None)


def _listening() -> bool:
    return bool(getattr(_server(), "sockets", None))


listener = Live(_send, _listening)


def origin(node_id: str | None) -> events.Origin:
    """Where a run that starts now on this thread belongs; what cannot be found out is None. Never raises."""
    prompt_id = sampler_node_id = workflow_id = None
    try:
        from comfy_execution.utils import get_executing_context

        context = get_executing_context()
        if context is not None:
            prompt_id, sampler_node_id = context.prompt_id, context.node_id
            workflow_id = _workflow_id(prompt_id)
    except Exception:
        logging.debug("SpeCa: the running prompt could not be identified", exc_info=True)
    return events.Origin(prompt_id, workflow_id, node_id, sampler_node_id)


def origin_of(node: Any) -> Callable[[], events.Origin]:
    """`origin` of a node's class while it is executed; its `hidden` is None where a script calls it."""
    return functools.partial(origin, getattr(node.hidden, "unique_id", None))


def _workflow_id(prompt_id: str) -> str | None:
    """The id of the workflow in the page that queued the prompt; a prompt from a script has none."""
    prompt_queue = getattr(_server(), "prompt_queue", None)
    if prompt_queue is None:
        return None
    for item in list(prompt_queue.currently_running.values()):
        if item[1] == prompt_id:
            workflow = (item[3].get("extra_pnginfo") or {}).get("workflow") or {}
            workflow_id = workflow.get("id")
            return None if workflow_id is None else str(workflow_id)
    return None


def register_routes(routes: Any, live: Live) -> None:
    """Adds the two GET routes to an aiohttp route table, once, however often the pack is installed."""
    from aiohttp import web

    if any(getattr(route, "path", None) == "/speca/runs" for route in routes):
        return

    async def answer(build: Callable[[], Any]) -> web.Response:
        # Twenty long runs are a second of JSON: not on the loop that carries the previews.

        text = await asyncio.get_running_loop().run_in_executor(None, lambda: json.dumps(build()))
        return web.Response(text=text, content_type="application/json", headers={"Cache-Control": "no-store"})

    @routes.get("/speca/runs")
    async def runs(request: web.Request) -> web.Response:
        """{"version", "runs": [whole run records, oldest first]}"""
        records = live.runs()
        return await answer(lambda: {"version": events.VERSION, "runs": [record.to_json() for record in records]})

    @routes.get("/speca/runs/{run_id}")
    async def run(request: web.Request) -> web.Response:
        """One run record; 404 for a run that is unknown or no longer kept."""
        record = live.run(request.match_info["run_id"])
        if record is None:
            return web.json_response({"error": "no such run"}, status=404)
        return await answer(record.to_json)


_instance = _server()
if _instance is not None and hasattr(_instance, "routes"):
    register_routes(_instance.routes, listener)
