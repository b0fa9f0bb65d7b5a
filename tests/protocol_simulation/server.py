"""The server's side of the gRPC library: what `VerifierServer` uses of grpc.aio.Server."""

import asyncio
from contextvars import copy_context
from typing import Any

import grpc

from protocol_simulation.calls import CALL, OK, ServerCall, Status
from protocol_simulation.network import Network


class Server:
    """Listens at one address of the network, with the handlers of one process."""

    def __init__(self, network: Network) -> None:
        self.address = ""
        self._network = network
        self._handlers: dict[str, Any] = {}
        self._context = copy_context()  # of the process
        self._calls: dict[ServerCall, None] = {}
        self._is_open = False

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """The registered ones say the same."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        self._handlers |= {f"/{service}/{name}": handler for name, handler in handlers.items()}

    def add_insecure_port(self, address: str) -> int:
        self.address = address
        return int(address.rpartition(":")[2])

    async def start(self) -> None:
        self._is_open = True
        self._network.listen(self)

    async def stop(self, grace_s: float) -> None:
        """As a server does: no new connection, calls may end, then all is over."""
        self._is_open = False
        if self._network.servers.get(self.address) is self:
            del self._network.servers[self.address]
        tasks = {call.task for call in self._calls if call.task is not None}
        if tasks:
            _, left = await asyncio.wait(tasks, timeout=grace_s)
            for task in left:
                task.cancel()
            if left:
                await asyncio.wait(left)
        self._network.vanish(self, silently=False)

    def accept(self, call: ServerCall) -> Any:
        """A call begins; its handler."""
        handler = self._handlers[call.client.method.path]
        if not self._is_open:
            call.end(Status(grpc.StatusCode.UNAVAILABLE, "Server is stopping"))
            return handler
        context = self._context.copy()
        context.run(CALL.set, call.client)
        self._calls[call] = None
        loop = asyncio.get_running_loop()
        call.task = loop.create_task(self._serve(call, handler), context=context)
        return handler

    async def _serve(self, call: ServerCall, handler: Any) -> None:
        try:
            if handler.stream_stream is not None:
                await handler.stream_stream(None, call)
            else:
                request = await call.read()
                if request is not grpc.aio.EOF:
                    await call.write(await handler.unary_unary(request, call))
            call.end(Status(OK.code, OK.details, call.trailing_metadata))
        except grpc.aio.AbortError:
            pass
        except asyncio.CancelledError:
            call.end(Status(grpc.StatusCode.CANCELLED, "the handler was cancelled"))
            raise
        except Exception as error:
            self._network.world.fail(f"a handler raised {error!r}")
            call.end(Status(grpc.StatusCode.UNKNOWN, repr(error)))
        finally:
            self._calls.pop(call, None)
