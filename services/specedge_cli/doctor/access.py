"""Files that say who may call."""

from collections.abc import Sequence
from pathlib import Path

from edge_agent.http.api_keys import read_api_keys
from specedge.errors import SettingsError
from specedge_cli.doctor.check import Finding
from specedge_cli.doctor.private_file import judge_mode
from specedge_verifier.tenants import read_tenants


def check_api_keys(path: Path | None, is_public: bool) -> Sequence[Finding]:
    """The edge's API keys.

    Args:
        is_public: whether other machines reach the API.
    """
    if path is None:
        if not is_public:
            return [Finding("api keys", "ok", "none are needed, and only this machine reaches the API")]
        change = "set api_keys_file (`specedge key NAME` makes a key), unless a proxy in front asks for keys"
        return [Finding("api keys", "warn", "everybody who reaches the API may use it", change)]
    try:
        num_keys = len(read_api_keys(path))
    except SettingsError as error:
        return [Finding("api keys", "fail", str(error), "correct the file (`specedge key NAME` writes entries)")]
    findings = [judge_num_keys(num_keys, path)]
    return [*findings, *judge_mode("api_keys_file", path, "the hashes of API keys")]


def judge_num_keys(num_keys: int, path: Path) -> Finding:
    """Whether anybody can get in."""
    if num_keys == 0:
        return Finding(
            "api keys", "warn", f"{path} holds no key: every request is refused", "add one: specedge key NAME"
        )
    return Finding("api keys", "ok", f"{num_keys} in {path}", values={"num_keys": num_keys})


def check_tenants(path: Path | None, is_public: bool) -> Sequence[Finding]:
    """The verifier's tenants.

    Args:
        is_public: whether edges on other machines get in without a certificate.
    """
    if path is None:
        if not is_public:
            return [Finding("tenants", "ok", "none: every edge that gets in may do everything")]
        change = "set tenants_file (`specedge token NAME` makes an entry) or tls_client_ca_file"
        return [Finding("tenants", "warn", "every edge that reaches this verifier may use it", change)]
    try:
        entries = read_tenants(path)
    except SettingsError as error:
        return [Finding("tenants", "fail", str(error), "correct the file (`specedge token NAME` writes entries)")]
    return [judge_tenants(len(entries), path), *judge_mode("tenants_file", path, "the hashes of tokens")]


def judge_tenants(num_tenants: int, path: Path) -> Finding:
    """Whether any edge can get in."""
    if num_tenants == 0:
        change = "add one: specedge token NAME"
        return Finding("tenants", "warn", f"{path} holds no tenant: every edge is refused", change)
    return Finding("tenants", "ok", f"{num_tenants} in {path}", values={"num_tenants": num_tenants})
