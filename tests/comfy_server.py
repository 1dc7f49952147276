"""A real ComfyUI server process with this pack in it, and a client for its HTTP queue and websocket."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import browsers
import comfy_env

READY_TIMEOUT = 240.0
RUN_TIMEOUT = 240.0
FINAL_EVENTS = {"execution_success": "success", "execution_error": "error", "execution_interrupted": "interrupted"}


class ServerFailedError(Exception):
    """The server did not come up, or ended on its own; the text ends with its log."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """`with Server(folder) as server`: started, ready, and stopped at the end. `folder` gets its base directory.

    `arguments` are further arguments of ComfyUI's `main.py`; `settings` are frontend settings over the defaults.
    """

    def __init__(
        self,
        folder: Path,
        *,
        arguments: Sequence[str] = (),
        settings: dict[str, Any] | None = None,
        python: str = sys.executable,
    ) -> None:
        comfyui = comfy_env.comfyui_path()
        if comfyui is None:
            raise ServerFailedError("there is no ComfyUI: run `python dev.py setup`, or set COMFYUI_PATH")
        self.base = comfy_env.make_base_directory(folder)
        settings_file = self.base / "user" / "default" / "comfy.settings.json"
        settings_file.write_text(json.dumps(browsers.FRONTEND_SETTINGS | (settings or {})), encoding="utf-8")
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log_file = folder / "server.log"
        self._command = [
            python, "-u", str(comfyui / "main.py"), "--cpu", "--disable-api-nodes",
            "--listen", "127.0.0.1", "--port", str(self.port),
            "--base-directory", str(self.base),
            "--database-url", f"sqlite:///{(folder / 'comfyui.db').as_posix()}",
            *arguments,
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
        with self._log_file.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        give_up = time.monotonic() + READY_TIMEOUT
        while True:
            if self._process.poll() is not None:
                raise ServerFailedError(
                    f"the server ended with exit code {self._process.returncode}\n{self.log()[-8000:]}"
                )
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                if time.monotonic() > give_up:
                    raise ServerFailedError(f"not ready after {READY_TIMEOUT:g} s\n{self.log()[-8000:]}") from None
                time.sleep(0.2)

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def log(self) -> str:
        return self._log_file.read_text(encoding="utf-8", errors="replace")

    def failed_imports(self) -> list[str]:
        """The log's lines about packs or core nodes that could not be imported."""
        return [line for line in self.log().splitlines() if "IMPORT FAILED" in line or "Cannot import" in line]

    def get(self, path: str) -> Any:
        """The JSON at `path`. Raises `urllib.error.HTTPError`."""
        with urllib.request.urlopen(self.url + path, timeout=60) as response:
            return json.load(response)

    def post(self, path: str, data: Any) -> Any:
        """POST `data` as JSON; the answer's JSON, or None if it is empty. Raises `urllib.error.HTTPError`."""
        request = urllib.request.Request(
            self.url + path, json.dumps(data).encode(), {"Content-Type": "application/json"}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            body = response.read()
        return json.loads(body) if body else None

    def client(self) -> Client:
        """`with server.client() as client`: one browser's connection."""
        return Client(self)


@dataclass
class Run:
    """One prompt as its client saw it: `status` is success, error or interrupted; `outputs` are the history's."""

    prompt_id: str
    status: str
    events: list[tuple[str, Any]]
    outputs: dict[str, Any]

    def sent(self, name: str) -> list[Any]:
        """The data of all events called `name`."""
        return [data for event, data in self.events if event == name]


class Client:
    """What a browser is to the server: a websocket that receives events, and prompts queued in its name."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.id = uuid.uuid4().hex
        self.events: list[tuple[str, Any]] = []
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._connected = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="websocket-client", daemon=True)

    def __enter__(self) -> Client:
        self._thread.start()
        if not self._connected.wait(timeout=60) or self._failure is not None:
            raise ServerFailedError(f"no websocket connection: {self._failure}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(timeout=20)

    def _run(self) -> None:
        try:
            self._task = self._loop.create_task(self._receive())
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            pass
        except BaseException as failure:
            self._failure = failure
        finally:
            self._loop.close()
            self._connected.set()
            with self._changed:
                self._changed.notify_all()

    async def _receive(self) -> None:
        import aiohttp

        address = f"{self.server.url.replace('http', 'ws', 1)}/ws?clientId={self.id}"
        async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as websocket:
            self._connected.set()
            async for message in websocket:
                with self._changed:
                    if message.type == aiohttp.WSMsgType.TEXT:
                        event = json.loads(message.data)
                        self.events.append((event["type"], event["data"]))
                    self._changed.notify_all()

    def wait_for(self, condition: Callable[[list[tuple[str, Any]]], bool], timeout: float = RUN_TIMEOUT) -> None:
        """Wait until the events so far fulfil `condition`. Raises `TimeoutError` with the server's log."""
        with self._changed:
            done = self._changed.wait_for(lambda: condition(self.events) or not self._thread.is_alive(), timeout)
            if not done or not condition(self.events):
                names = [name for name, _ in self.events]
                raise TimeoutError(f"events so far: {names}; {self._failure}\n{self.server.log()[-8000:]}")

    def queue(self, graph: dict[str, Any]) -> str:
        """Queue an API-format graph and return its prompt id. Raises `ValueError` if the server refuses it."""
        try:
            answer = self.server.post("/prompt", {"prompt": graph, "client_id": self.id})
        except urllib.error.HTTPError as error:
            raise ValueError(f"the server refused the graph: {error.read().decode()}") from error
        return str(answer["prompt_id"])

    def follow(self, prompt_id: str, timeout: float = RUN_TIMEOUT) -> Run:
        """Wait until the prompt has ended, and give its events and outputs."""

        def own(events: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
            return [(name, data) for name, data in events if _prompt_of(data) == prompt_id]

        def ended(events: list[tuple[str, Any]]) -> bool:
            return any(name in FINAL_EVENTS for name, _ in own(events))

        self.wait_for(ended, timeout)
        history = self._history(prompt_id)
        with self._changed:
            events = own(self.events)
        status = next(FINAL_EVENTS[name] for name, _ in events if name in FINAL_EVENTS)
        return Run(prompt_id, status, events, history.get("outputs", {}))

    def run(self, graph: dict[str, Any], timeout: float = RUN_TIMEOUT) -> Run:
        """Queue and follow."""
        return self.follow(self.queue(graph), timeout)

    def _history(self, prompt_id: str) -> dict[str, Any]:
        # The final event leaves just before the run is entered into the history.
        for _ in range(100):
            entry = self.server.get(f"/history/{prompt_id}").get(prompt_id)
            if entry is not None:
                return dict(entry)
            time.sleep(0.1)
        raise TimeoutError(f"prompt {prompt_id} has ended but is not in the history")


def _prompt_of(data: Any) -> str | None:
    return data.get("prompt_id") if isinstance(data, dict) else None
