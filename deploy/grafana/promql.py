"""Phrases of PromQL that the dashboards have in common. `selector` is what stands between the braces."""


def rate(metric: str, selector: str = "") -> str:
    """Per second, of each series."""
    return f"rate({metric}{{{selector}}}[$__rate_interval])"


def total(metric: str, selector: str = "", by: str = "") -> str:
    """Per second, added up."""
    return f"sum{f' by ({by})' if by else ''} ({rate(metric, selector)})"


def quantile(share: float, histogram: str, selector: str = "", by: str = "") -> str:
    """A quantile of what a histogram observed lately."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share:g}, {total(f'{histogram}_bucket', selector, labels)})"


def mean(histogram: str, selector: str = "", by: str = "") -> str:
    """The mean of what a histogram observed lately."""
    return f"{total(f'{histogram}_sum', selector, by)} / {total(f'{histogram}_count', selector, by)}"


def share(parts: str, whole: str) -> str:
    """Each of several series over one number; nothing where that is 0."""
    return f"{parts} / on () group_left () ({whole} > 0)"


def padded(label: str, expr: str) -> str:
    """Numbers of one or two digits in a label as two, so that their order as text is their order."""
    return f'label_replace({expr}, "{label}", "0$1", "{label}", "(.)")'


def ratio(part: str, whole: str) -> str:
    """One expression over another; nothing where that is 0."""
    return f"{part} / ({whole} > 0)"
