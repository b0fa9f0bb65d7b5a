"""All verifiers an edge knows. A session is opened on the less loaded of two, stays there, and moves when it must.

Every verifier of a pool serves the same: an answer goes on anywhere, token for token. One that serves something else is
left out until it does.
"""

import asyncio
import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace

from edge_agent.stream_observer import StreamObserver
from edge_agent.verifier_addresses import FixedAddresses, VerifierAddresses
from edge_agent.verifier_choice import Candidate, Standing, choose
from edge_agent.verifier_client import VerifierClient
from edge_agent.verifier_member import Identity, Need, PoolTimes, VerifierMember
from specedge.errors import (
    CapacityExceeded,
    ModelLoadError,
    ProtocolError,
    SpecEdgeError,
    VerifierDraining,
    VerifierUnavailable,
)
from specedge.wire.messages import ServerInfo

logger = logging.getLogger(__name__)

FOLLOW_EVERY_S = 1.0
_JITTER = 0.2


class VerifierPool:
    """The verifiers at the addresses of a source. Create it on the event loop; close it there.

    Args:
        addresses: the source.
        make_client: a client for an address.
        observer: is told what happens to sessions.
        times: how often they are asked how they are.
        dice: breaks ties and spreads what would else happen at once.
    """

    def __init__(
        self,
        addresses: VerifierAddresses,
        make_client: Callable[[str], VerifierClient],
        observer: StreamObserver,
        times: PoolTimes | None = None,
        dice: random.Random | None = None,
    ) -> None:
        self.observer = observer
        self.times = PoolTimes() if times is None else times
        self._addresses = addresses
        self._make_client = make_client
        self._dice = dice or random.Random()
        self._members: dict[str, VerifierMember] = {}
        self._retired: set[VerifierMember] = set()
        self._watches: dict[VerifierMember, asyncio.Task[None]] = {}
        self._fingerprint = ""
        self._identity: Identity | None = None
        self._info: ServerInfo | None = None

    @classmethod
    def of(cls, client: VerifierClient, times: PoolTimes | None = None) -> "VerifierPool":
        """The pool of a single verifier."""
        return cls(FixedAddresses([client.address]), lambda _: client, client.observer, times)

    @property
    def address(self) -> str:
        """Where the verifiers are, as the user wrote it."""
        return self._addresses.text

    @property
    def members(self) -> tuple[VerifierMember, ...]:
        """The verifiers, in the order of the source."""
        return tuple(self._members.values())

    @property
    def info(self) -> ServerInfo | None:
        """What is served: what any of them can, and the shortest context; None until one has answered."""
        return self._info

    @property
    def is_ready(self) -> bool:
        """Whether a verifier is there for new sessions."""
        return self._info is not None and any(
            member.is_usable
            and member.is_serving is not False
            and member.client.refusal is None
            and member.client.is_connected
            for member in self._members.values()
        )

    @property
    def is_reachable(self) -> bool:
        """Whether a new session has any chance now: a verifier is there, answers, and takes this edge."""
        now_s = asyncio.get_running_loop().time()
        return any(
            member.is_usable
            and member.client.is_connected
            and member.standing(now_s) not in (Standing.AWAY, Standing.LOST)
            for member in self._members.values()
        )

    @property
    def failure(self) -> str | None:
        """Why they serve nothing, as far as more is known than that they do not answer."""
        found = [member.client.failure or member.reason for member in self._members.values()]
        return "; ".join(reason for reason in found if reason) or None

    @property
    def states(self) -> list[tuple[str, str, str | None]]:
        """Address, state, and what is wrong, of each verifier where there are several."""
        if len(self._members) == 1 and self._addresses.is_fixed:
            return []
        now_s = asyncio.get_running_loop().time()
        return [
            (member.address, member.state(now_s), member.client.failure or member.reason or None)
            for member in self._members.values()
        ]

    async def start(self, fingerprint: str, deadline_s: float) -> ServerInfo:
        """Asks what is served until one has answered, and the others had a moment for it.

        Args:
            fingerprint: the edge's tokenizer's; verifiers with another one are left out.
            deadline_s: how long that may take.

        Raises:
            VerifierUnavailable: none has answered.
            ModelLoadError, ProtocolError: every one there can be is unusable.
        """
        self._fingerprint = fingerprint
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + deadline_s
        await self._follow()
        while not self._members and loop.time() < give_up_at:
            await asyncio.sleep(min(FOLLOW_EVERY_S, max(give_up_at - loop.time(), 0.0)))
            await self._follow()
        if not self._members:
            raise VerifierUnavailable(f"no verifier is known: {self.address} has no addresses")
        left_s = deadline_s if self._addresses.is_fixed else max(give_up_at - loop.time(), 0.05)
        errors = await self._meet(left_s)
        self._settle()
        if self._info is not None:
            return self._info
        unavailable = [error for error in errors if isinstance(error, VerifierUnavailable)]
        raise (unavailable or errors)[0] if self._addresses.is_fixed else VerifierUnavailable(str(errors[0]))

    async def _meet(self, deadline_s: float) -> list[SpecEdgeError]:
        """Asks all of them; what those said that cannot be used."""
        asking = [asyncio.create_task(self._ask(member, deadline_s)) for member in self._members.values()]
        loop, errors = asyncio.get_running_loop(), list[SpecEdgeError]()
        waiting, end_s = {*asking}, math.inf
        try:
            while waiting and (now_s := loop.time()) < end_s:
                timeout_s = None if end_s == math.inf else end_s - now_s
                done, waiting = await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
                found = [error for task in asking if task in done and (error := task.result()) is not None]
                errors += found
                if len(found) < len(done):
                    end_s = min(end_s, loop.time() + self.times.meet_s)
        finally:
            for task in waiting:
                task.cancel()
            if waiting:
                await asyncio.wait(waiting)
        return errors

    async def _ask(self, member: VerifierMember, deadline_s: float) -> SpecEdgeError | None:
        try:
            member.told(await member.client.get_server_info(self._fingerprint, deadline_s))
        except (ModelLoadError, ProtocolError) as error:
            if len(self._members) > 1 or not self._addresses.is_fixed:
                member.leave_out(str(error))
            return error
        except SpecEdgeError as error:
            return error
        return None

    async def run(self) -> None:
        """Follows addresses and verifiers, for ever."""
        try:
            while True:
                await self._follow()
                for member in [*self._members.values()]:
                    if member not in self._watches:
                        self._watches[member] = asyncio.create_task(self._watch(member))
                await self._close_retired()
                await asyncio.sleep(FOLLOW_EVERY_S)
        finally:
            watches = [*self._watches.values()]
            self._watches.clear()
            for watch in watches:
                watch.cancel()
            if watches:
                await asyncio.wait(watches)

    def choose(self, need: Need, tried: Collection[VerifierMember] = ()) -> VerifierMember | None:
        """The verifier on which a session is to be opened now; None where none has what it needs, so far as we know."""
        now_s = asyncio.get_running_loop().time()
        member = choose(
            [Candidate(member, member.standing(now_s), member in tried, member.load) for member in self._able(need)],
            self._dice,
        )
        if member is not None:
            member.chosen(now_s)
        else:  # what they serve may have changed since they said
            for other in self._members.values():
                other.ask_again()
        return member

    def refusal(self, need: Need) -> CapacityExceeded | None:
        """What a session is told where every verifier that could take it refused one like it a moment ago."""
        now_s = asyncio.get_running_loop().time()
        soonest: CapacityExceeded | None = None
        for member in self._able(need):
            if member.standing(now_s) > Standing.BUSY:
                continue
            error = member.refuses(need, now_s)
            if error is None:
                return None
            if soonest is None or error.retry_after_s < soonest.retry_after_s:
                soonest = error
        return soonest

    def later_s(self, retry_after_s: float) -> float:
        """A time until which a user is sent away, a little longer at random: not all come back together."""
        return retry_after_s * self._dice.uniform(1.0, 1.0 + _JITTER)

    def has_other(self, need: Need, tried: Collection[VerifierMember]) -> bool:
        """Whether there is a verifier in good standing that a session has not tried."""
        now_s = asyncio.get_running_loop().time()
        return any(member not in tried and member.standing(now_s).is_fit for member in self._able(need))

    def spread_s(self) -> float:
        """A pause before a session that lost its verifier opens elsewhere."""
        return self._dice.uniform(0.0, self.times.spread_s)

    async def close(self) -> None:
        """Closes every connection and every stream on it."""
        for member in [*self._members.values(), *self._retired]:
            await member.client.close()

    def _able(self, need: Need) -> list[VerifierMember]:
        return [
            member
            for member in self._members.values()
            if member.info is not None and not member.is_left_out and need.is_met_by(member.info)
        ]

    async def _watch(self, member: VerifierMember) -> None:
        while True:
            try:
                await self._look_at(member)
            except Exception:
                logger.exception("the verifier at %s could not be watched", member.address)
            await member.wait(self._pause_s(member), self.times.spread_s)

    async def _look_at(self, member: VerifierMember) -> None:
        loop, is_sole = asyncio.get_running_loop(), len(self._members) == 1
        timeout_s = self.times.sole_ping_timeout_s if is_sole else self.times.ping_timeout_s
        asked_s = loop.time()
        if member.info is None or member.must_ask or member.is_left_out or member.client.refusal is not None:
            await member.ask(self._fingerprint, timeout_s)
            self._settle()
        if member.info is not None and not member.must_ask and member.client.refusal is None:
            asked_s = loop.time()
            member.pulse(await member.client.ping(timeout_s), loop.time())
        self._move_sessions(member, asked_s)

    def _pause_s(self, member: VerifierMember) -> float:
        times, now_s = self.times, asyncio.get_running_loop().time()
        if member.client.refusal is not None:
            return times.refused_pause_s
        if member.is_left_out:
            return times.left_out_pause_s * self._dice.uniform(0.75, 1.25)
        if len(self._members) > 1 and member.standing(now_s) is Standing.LOST:
            pause_s = max(member.breaker.retry_s - now_s, 0.05)
            return min(pause_s, times.ping_every_s) if member.sessions else pause_s
        if len(self._members) == 1:
            return times.ping_every_s
        if member.is_serving is None:
            return times.ping_every_s * self._dice.uniform(0.1, 0.3)
        if member.sessions or member.breaker.is_doubtful:
            return times.ping_every_s * self._dice.uniform(0.75, 1.0)
        return times.idle_ping_every_s * self._dice.uniform(0.75, 1.25)

    def _move_sessions(self, member: VerifierMember, asked_s: float) -> None:
        """Sessions leave a verifier that drains, and one that answers nothing any more, if they can go on elsewhere."""
        is_silent = member.breaker.is_tripped and member.is_serving is None
        if member.is_serving is not False and not is_silent:
            return
        for session in [*member.sessions]:
            if not self.has_other(session.need, {member}):
                continue
            if not is_silent:
                session.leave(VerifierDraining(f"the verifier at {member.address} serves no longer"))
            elif session.heard_s < asked_s:
                session.leave(VerifierUnavailable(f"the verifier at {member.address} answers nothing any more"))

    async def _follow(self) -> None:
        """Take over the addresses as they are now."""
        addresses = await self._addresses.refresh(asyncio.get_running_loop().time())
        if addresses == (*self._members,):
            return
        for address in [*self._members]:
            if address not in addresses:
                self._retire(self._members.pop(address))
        known, self._members = self._members, {}
        for address in addresses:
            self._members[address] = known.get(address) or VerifierMember(self._make_client(address), self._dice)
        self._settle()

    def _retire(self, member: VerifierMember) -> None:
        logger.info("the verifier at %s is not in %s any more", member.address, self.address)
        self._retired.add(member)
        if (watch := self._watches.pop(member, None)) is not None:
            watch.cancel()

    async def _close_retired(self) -> None:
        """Sessions of verifiers that are gone from the source move, or end there; then their connection closes."""
        for member in [*self._retired]:
            member.is_serving = False
            self._move_sessions(member, 0.0)
            if not member.sessions:
                self._retired.discard(member)
                await member.client.close()

    def _settle(self) -> None:
        """What most serve is served; it stays so as long as one of them does."""
        infos = {member: member.info for member in self._members.values() if member.info is not None}
        identities = [Identity.of(info) for info in infos.values()]
        if not identities:
            return
        if self._identity not in identities:
            # The first of those that are most frequent.
            found = Counter(identities).most_common(1)[0][0]
            if self._identity is not None:
                logger.warning("the verifiers serve %s now, no longer %s", found, self._identity)
            self._identity = found
        same = []
        for member, info in infos.items():
            if Identity.of(info) == self._identity:
                member.take_in()
                same.append(info)
            else:
                member.leave_out(f"it serves {Identity.of(info)}, the others {self._identity}")
        self._info = _together(same)


def _together(infos: list[ServerInfo]) -> ServerInfo:
    """What a session can get: what one of them has, within the shortest of their contexts."""
    if len(infos) == 1:
        return infos[0]
    capabilities = dict.fromkeys(capability for info in infos for capability in info.capabilities)
    return replace(infos[0], capabilities=tuple(capabilities), max_len=min(info.max_len for info in infos))
