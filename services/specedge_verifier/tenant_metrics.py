"""What each tenant has and has used, for Prometheus; read from the accounts when asked."""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from specedge_verifier.tenant_account import TenantAccount

_PREFIX = "specedge_verifier_"


class TenantMetrics(Collector):
    """Metrics with the label `tenant`, whose values are the names that the tenants file has had.

    Args:
        accounts: of all tenants; read from any thread.
        refused_calls: calls that were no tenant's, by reason; None where there are no tenants.
    """

    def __init__(
        self, accounts: Callable[[], Iterable[TenantAccount]], refused_calls: dict[str, int] | None = None
    ) -> None:
        self._accounts = accounts
        self._refused_calls = refused_calls

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """See `Collector.collect`."""
        tokens = CounterMetricFamily(
            _PREFIX + "tenant_tokens",
            "Tokens by tenant: prompt (with which sessions were opened), committed, verified (roots and draft nodes), "
            "drafted (draft nodes received)",
            labels=["tenant", "kind"],
        )
        opened = CounterMetricFamily(_PREFIX + "tenant_opened_sessions", "Sessions opened", labels=["tenant"])
        refused = CounterMetricFamily(
            _PREFIX + "tenant_refused_sessions",
            "Sessions refused: beyond the tenant's max_sessions, max_prompt_tokens or kv_share, or for want of room: "
            "queue (sessions), tokens (max_queued_tokens), ttft (max_predicted_ttft_s)",
            labels=["tenant", "reason"],
        )
        sessions = GaugeMetricFamily(_PREFIX + "tenant_sessions", "Sessions by state", labels=["tenant", "state"])
        blocks = GaugeMetricFamily(
            _PREFIX + "tenant_kv_blocks", "KV blocks held, a shared one by each session", labels=["tenant"]
        )
        for account in self._accounts():
            name, usage = account.name, account.usage
            for kind, number in (
                ("prompt", usage.prompt),
                ("committed", usage.committed),
                ("verified", usage.verified),
                ("drafted", usage.drafted),
            ):
                tokens.add_metric([name, kind], number)
            opened.add_metric([name], usage.num_sessions)
            for reason, number in usage.refusals.copy().items():
                refused.add_metric([name, reason], number)
            sessions.add_metric([name, "running"], account.num_running)
            sessions.add_metric([name, "waiting"], account.num_waiting)
            blocks.add_metric([name], account.num_blocks)
        yield from (tokens, opened, refused, sessions, blocks)
        if self._refused_calls is not None:
            calls = CounterMetricFamily(
                _PREFIX + "unauthenticated_calls", "Calls refused or ended: nobody's, or revoked", labels=["reason"]
            )
            for reason, number in self._refused_calls.copy().items():
                calls.add_metric([reason], number)
            yield calls
