"""A replica's port: passes bytes on to the router, and says by itself whether the replica is ready.

smg says 503 for 5 s once it is to end, and then refuses connections. SkyServe needs longer to look
elsewhere (a probe, a question to the cloud, and the load balancer's next look each 20 s), and
what it sends meanwhile would be lost. Here readiness ends first, and requests are still taken.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

READINESS = "/readiness"
# What begins a probe's connection, which is one of its own.
_PROBE = f"GET {READINESS}".encode()
_CHUNK_BYTES = 1 << 16
_ANSWER = "HTTP/1.1 {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Front:
    """Listens until it is closed, in a thread of its own."""

    def __init__(self, port: int, router_port: int, is_ready: Callable[[], bool]) -> None:
        """Listen at every address of this machine; `is_ready` is asked at each probe.

        Raises:
            OSError: the port is taken.
        """
        self._router_port, self._is_ready = router_port, is_ready
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="front", daemon=True)
        self._thread.start()
        listening = asyncio.start_server(self._serve, "0.0.0.0", port)
        self._server = asyncio.run_coroutine_threadsafe(listening, self._loop).result()

    @property
    def port(self) -> int:
        """The port, where 0 was asked for."""
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def refuse(self) -> None:
        """Take no connection any more; those that there are go on."""
        self._do(self._stop_listening())

    def close(self) -> None:
        """End it, with what is being passed on."""
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, act: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(act, self._loop).result()

    async def _stop_listening(self) -> None:
        self._server.close()

    async def _end(self) -> None:
        self._server.close()
        going_on = asyncio.all_tasks() - {asyncio.current_task()}
        for task in going_on:
            task.cancel()
        await asyncio.gather(*going_on, return_exceptions=True)
        await asyncio.sleep(0)  # in which the loop closes their sockets

    async def _serve(self, client: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        # A peer that goes away in the middle is nobody's error here.
        with suppress(OSError, asyncio.CancelledError):
            head = await client.read(_CHUNK_BYTES)
            if head.startswith(_PROBE):
                status = "200 OK" if self._is_ready() else "503 Service Unavailable"
                answers.write(_ANSWER.format(status).encode())
            elif head:
                await self._pass_on(head, client, answers)
        answers.close()

    async def _pass_on(
        self, head: bytes, client: asyncio.StreamReader, answers: asyncio.StreamWriter
    ) -> None:
        said, router = await asyncio.open_connection("127.0.0.1", self._router_port)
        try:
            router.write(head)
            asking = asyncio.create_task(_copy(client, router))
            await _copy(said, answers)
            asking.cancel()
        finally:
            router.close()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(_CHUNK_BYTES):
            target.write(data)
            await target.drain()
        if target.can_write_eof():
            target.write_eof()
