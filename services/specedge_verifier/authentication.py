"""Who calls: every call but the health check is a tenant's, from its beginning until the tenant is known no longer."""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from inspect import isasyncgenfunction
from typing import Any

import grpc

from specedge.errors import Unauthenticated
from specedge.wire.status import to_status
from specedge_verifier.tenant_account import TenantAccount
from specedge_verifier.tenants import Caller, Tenants

logger = logging.getLogger(__name__)

_OPEN_SERVICE = "/grpc.health.v1.Health/"
_BEARER = "bearer "
_LOG_EVERY_S = 10.0

_NO_CREDENTIALS = (
    "this verifier serves tenants only: send a tenant's token as metadata 'authorization: Bearer TOKEN' (setting "
    "verifier_token or verifier_token_file of an edge), or connect with a tenant's certificate"
)
_UNKNOWN_TOKEN = "this token is no tenant's here; check verifier_token or verifier_token_file of the edge"
_UNKNOWN_CERTIFICATE = "no name in this certificate is a tenant's here, and there is no token"
_REVOKED = "the token or certificate of tenant {} was revoked; check verifier_token or verifier_token_file of the edge"

_Messages = AsyncGenerator[Any, None]

_caller: ContextVar[TenantAccount | None] = ContextVar("tenant of the call", default=None)


def calling_tenant() -> TenantAccount | None:
    """Whose call is being answered; None where there are no tenants."""
    return _caller.get()


class _Call:
    """A call being answered."""

    def __init__(self, caller: Caller, account: TenantAccount, task: "asyncio.Task[Any]") -> None:
        self.caller = caller
        self.account = account
        self.is_revoked = False
        self._task = task

    def revoke(self) -> None:
        """End it."""
        self.is_revoked = True
        self._task.cancel()


class Authentication(grpc.aio.ServerInterceptor):
    """Lets calls through that are a tenant's, and ends them when they are so no longer.

    Args:
        tenants: by the file.
        clock: steady time in seconds.

    Attributes:
        refused: calls refused or ended, by reason.
    """

    def __init__(self, tenants: Tenants, clock: Callable[[], float] = time.monotonic) -> None:
        self.tenants = tenants
        self.refused: Counter[str] = Counter()
        self._clock = clock
        self._calls: set[_Call] = set()
        self._logged_s = -_LOG_EVERY_S
        self._num_unlogged = 0

    async def watch(self) -> None:
        """Follows the file, for ever; calls of tenants that it no longer knows end."""
        while True:
            await asyncio.sleep(self.tenants.check_interval_s)
            if not await self.tenants.refresh():
                continue
            for call in [*self._calls]:
                if self.tenants.find(call.caller) is not call.account:
                    call.revoke()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], "Awaitable[grpc.RpcMethodHandler[Any, Any] | None]"],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """The handler of a call, which answers nobody else."""
        handler: Any = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(_OPEN_SERVICE):
            return handler  # type: ignore[no-any-return]
        kinds = {
            "unary_unary": grpc.unary_unary_rpc_method_handler,
            "unary_stream": grpc.unary_stream_rpc_method_handler,
            "stream_unary": grpc.stream_unary_rpc_method_handler,
            "stream_stream": grpc.stream_stream_rpc_method_handler,
        }
        kind = "_".join(
            "stream" if streams else "unary" for streams in (handler.request_streaming, handler.response_streaming)
        )
        answer = getattr(handler, kind)
        guarded: Any = self._guard_iterator(answer) if isasyncgenfunction(answer) else self._guard(answer)
        made: Any = kinds[kind](guarded, handler.request_deserializer, handler.response_serializer)
        return made  # type: ignore[no-any-return]

    def _guard(self, answer: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def guarded(request: Any, context: Any) -> Any:
            try:
                with self._calling(context):
                    return await answer(request, context)
            except _Refusal as refusal:
                return await self._refuse(context, refusal)

        return guarded

    def _guard_iterator(
        self, answer: Callable[..., AsyncGenerator[Any, None]]
    ) -> Callable[..., AsyncGenerator[Any, None]]:
        async def guarded(request: Any, context: Any) -> _Messages:
            try:
                with self._calling(context):
                    async with contextlib.aclosing(answer(request, context)) as messages:
                        async for message in messages:
                            yield message
            except _Refusal as refusal:
                await self._refuse(context, refusal)

        return guarded

    @contextmanager
    def _calling(self, context: Any) -> Iterator[None]:
        """While a call is answered; raises _Refusal when it is no tenant's, or no longer."""
        caller = caller_of(context)
        account = self.tenants.find(caller)
        if account is None:
            raise _refusal_of(caller)
        task = asyncio.current_task()
        assert task is not None
        call = _Call(caller, account, task)
        self._calls.add(call)
        _caller.set(account)
        try:
            yield
        except asyncio.CancelledError:
            if not call.is_revoked:
                raise
            task.uncancel()
            raise _Refusal("revoked", _REVOKED.format(account.name)) from None
        finally:
            self._calls.discard(call)

    async def _refuse(self, context: Any, refusal: "_Refusal") -> None:
        self.refused[refusal.reason] += 1
        now_s = self._clock()
        if now_s - self._logged_s < _LOG_EVERY_S:
            self._num_unlogged += 1
        else:
            more = f" (and {self._num_unlogged} more calls since the last such line)" if self._num_unlogged else ""
            logger.warning("call from %s refused: %s%s", context.peer(), refusal.reason, more)
            self._logged_s, self._num_unlogged = now_s, 0
        status = to_status(refusal)
        await context.abort(status.code, status.details, status.metadata)


class _Refusal(Unauthenticated):
    """A call is not answered.

    Args:
        reason: as counted.
        message: what the caller is told.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def _refusal_of(caller: Caller) -> _Refusal:
    if caller.token:
        return _Refusal("unknown_token", _UNKNOWN_TOKEN)
    if caller.certificate_names:
        return _Refusal("unknown_certificate", _UNKNOWN_CERTIFICATE)
    return _Refusal("no_credentials", _NO_CREDENTIALS)


def caller_of(context: Any) -> Caller:
    """What a call shows of its caller."""
    token = b""
    for key, value in context.invocation_metadata() or ():
        if key == "authorization" and not token and isinstance(value, str) and value[:7].lower() == _BEARER:
            token = value[7:].strip().encode()
    presented = context.auth_context()
    # A certificate's common name counts only where it names nothing else, as for servers.
    names = presented.get("x509_subject_alternative_name") or presented.get("x509_common_name") or ()
    return Caller(token, tuple(name.decode(errors="replace") for name in names))
