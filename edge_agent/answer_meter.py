"""Times and counts one answer: time to first token, gaps between tokens, why it ended."""

import asyncio
import math
import time
from collections.abc import Callable

from edge_agent.metrics import EdgeMetrics


class AnswerMeter:
    """One answer's measurements, from the request's arrival to its end; use as a context manager around it."""

    def __init__(
        self,
        metrics: EdgeMetrics,
        arrived_s: float,
        num_prompt_tokens: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._metrics = metrics
        self._arrived_s = arrived_s
        self._num_prompt_tokens = num_prompt_tokens
        self._clock = clock
        self._last_burst_s: float | None = None
        self._first_burst_s = math.inf
        self._num_tokens = 0
        self._finished_reason: str | None = None

    def __enter__(self) -> "AnswerMeter":
        self._metrics.waiting.inc()
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if self._last_burst_s is None:
            self._metrics.waiting.dec()
        else:
            self._metrics.running.dec()
        was_cancelled = error_type is not None and issubclass(error_type, asyncio.CancelledError)
        reason = self._finished_reason or ("abort" if was_cancelled else "error")
        self._metrics.finished.labels(reason).inc()

    def burst(self, num_tokens: int, *, is_replayed: bool = False) -> None:
        """Takes one verdict's tokens into account; replayed ones were counted when they were generated."""
        now_s, metrics = self._clock(), self._metrics
        if self._last_burst_s is None:
            self._first_burst_s = now_s
            metrics.first_token.observe(now_s - self._arrived_s)
            metrics.prompt_tokens.inc(self._num_prompt_tokens)
            metrics.waiting.dec()
            metrics.running.inc()
        else:
            gap_s = now_s - self._last_burst_s
            metrics.inter_burst.observe(gap_s)
            for _ in range(num_tokens):
                metrics.inter_token.observe(gap_s / num_tokens)
        self._last_burst_s = now_s
        self._num_tokens += num_tokens
        if not is_replayed:
            metrics.generated_tokens.inc(num_tokens)

    def end(self, finished_reason: str) -> None:
        """The answer is complete; one that never gets here counts as "abort" when cancelled, else as "error"."""
        self._finished_reason = finished_reason
        self._metrics.answer_seconds.observe(self._clock() - self._arrived_s)
        is_met = self._meets_slo()
        self._metrics.slo_answers[is_met].inc()
        if is_met:
            self._metrics.slo_tokens.inc(self._num_tokens)

    def _meets_slo(self) -> bool:
        slo = self._metrics.slo
        if self._last_burst_s is None or self._first_burst_s - self._arrived_s > slo.ttft_s:
            return False
        # A one-token answer has no pause between tokens that could break the promise.
        return self._last_burst_s - self._first_burst_s <= slo.itl_s * (self._num_tokens - 1)
