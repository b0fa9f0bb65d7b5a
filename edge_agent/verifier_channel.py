"""The connection to a verifier, in plain text or by TLS with certificates that may change while it stands."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import grpc

from specedge.background import start_in_background
from specedge.tls.diagnosis import ClientTls, TlsFailure, diagnose
from specedge.wire.channel import client_options

if TYPE_CHECKING:
    from specedge.tls.files import TlsMaterial, TlsSource

logger = logging.getLogger(__name__)

_DIAGNOSE_EVERY_S: Final = 5.0
_DIAGNOSE_TIMEOUT_S: Final = 2.0
_DIAGNOSE_PATIENCE_S: Final = 6.0
"""For connecting, the handshake and a first word; looking the name up has no limit of its own."""


@dataclass(frozen=True, slots=True)
class LinkTls:
    """TLS of an edge's link.

    Args:
        source: the files, with the authority of the verifier's certificate.
        name: expected in that certificate; None expects the address's host.
    """

    source: "TlsSource"
    name: str | None = None

    @property
    def client(self) -> ClientTls:
        """The same by paths."""
        files = self.source.files
        assert files.authority is not None
        return ClientTls(
            files.authority.path,
            None if files.certificate is None else files.certificate.path,
            None if files.key is None else files.key.path,
            self.name,
        )


@dataclass(slots=True, eq=False)
class Link:
    """One gRPC channel and who uses it."""

    channel: grpc.aio.Channel
    material: "TlsMaterial | None"
    num_users: int = 0


class VerifierChannel:
    """Links to the verifier at `address`. When the certificate files change, what begins from then on takes a new one.

    Calls that are under way keep the link they began on, which is closed after the last of them.
    """

    def __init__(self, address: str, tls: LinkTls | None) -> None:
        self._address = address
        self._tls = tls
        self._link = self._connect()
        self._retired: set[Link] = set()
        self._next_diagnosis_s = 0.0
        self._failure: TlsFailure | None = None
        self._diagnosis: asyncio.Future[TlsFailure | None] | None = None

    @property
    def failure(self) -> TlsFailure | None:
        """Why TLS does not come about, as found by the last diagnosis; None once a call got through."""
        return self._failure

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel for what begins now; only for what needs no link of its own."""
        return self._fresh().channel

    @asynccontextmanager
    async def link(self) -> AsyncIterator[Link]:
        """A link for one call, which it outlives."""
        link = self.take()
        try:
            yield link
        finally:
            await self.give_back(link)

    def take(self) -> Link:
        """As `link`, for a call whose end is elsewhere: it must call `give_back`."""
        link = self._fresh()
        link.num_users += 1
        return link

    async def give_back(self, link: Link) -> None:
        """The call has ended."""
        link.num_users -= 1
        unused = [retired for retired in self._retired if not retired.num_users]
        self._retired.difference_update(unused)
        for retired in unused:
            await retired.channel.close()

    def works(self) -> None:
        """A call got through."""
        if self._failure is not None:
            logger.info("the verifier at %s can be reached again", self._address)
        self._failure = None
        self._next_diagnosis_s = 0.0

    async def diagnose(self) -> TlsFailure | None:
        """Finds out why a call did not get through, every few seconds at most.

        Returns:
            The failure if one was found by this very call, to be counted.
        """
        loop = asyncio.get_running_loop()
        if loop.time() < self._next_diagnosis_s:
            return None
        self._next_diagnosis_s = loop.time() + _DIAGNOSE_EVERY_S
        client = None if self._tls is None else self._tls.client
        diagnosis = self._diagnosis
        if diagnosis is None or diagnosis.done():
            look = partial(diagnose, self._address, client, _DIAGNOSE_TIMEOUT_S)
            self._diagnosis = diagnosis = start_in_background(look, "diagnosis")
        await asyncio.wait({diagnosis}, timeout=_DIAGNOSE_PATIENCE_S)
        if not diagnosis.done():
            return None
        failure = diagnosis.result()
        if failure is not None and failure != self._failure:
            logger.warning("no TLS with the verifier: %s", failure.text)
        self._failure = failure
        return failure

    async def close(self) -> None:
        """Closes every link and every call on it."""
        for link in [self._link, *self._retired]:
            await link.channel.close()

    def _fresh(self) -> Link:
        if self._tls is not None and self._tls.source.refresh() is not self._link.material:
            self._retired.add(self._link)
            self._link = self._connect()
        return self._link

    def _connect(self) -> Link:
        options: list[tuple[str, int | str]] = [*client_options(self._address)]
        if self._tls is None:
            return Link(grpc.aio.insecure_channel(self._address, options=options), None)
        if self._tls.name is not None:
            options.append(("grpc.ssl_target_name_override", self._tls.name))
        material = self._tls.source.material
        credentials = grpc.ssl_channel_credentials(material.authority_pem, material.key_pem, material.certificate_pem)
        return Link(grpc.aio.secure_channel(self._address, credentials, options=options), material)
