"""`specedge token`: makes a tenant's token."""

import argparse
import sys

from specedge_verifier.tenants import new_token, spell_tenant

_LIMITS = {
    "weight": "part of what tenants compete for, relative to others' (1 unless given)",
    "max_sessions": "most sessions running and waiting at a time",
    "max_verified_tokens_per_second": "most roots and draft nodes computed in a second",
    "kv_share": "part of the KV cache that the tenant's sessions may hold together, above 0 to 1",
    "max_prompt_tokens": "longest prompt",
}


def make_token(arguments: list[str]) -> int:
    """Print a tenant's entry for the tenants file on standard output, and its token, once, on standard error.

    Raises:
        SettingsError: the name or a limit is not allowed.
    """
    parser = argparse.ArgumentParser(
        prog="specedge token",
        description="Make a token with which an edge is a tenant of a verifier. The tenant's entry for the verifier's "
        "tenants_file goes to standard output, the token itself to standard error; it is shown this once and kept "
        "nowhere. For a second token of a tenant, add the printed hash to the tokens of its entry.",
        epilog="specedge token alice >> tenants.yaml",
        allow_abbrev=False,
    )
    parser.add_argument("name", metavar="NAME", help="the tenant; metrics show it")
    for field, text in _LIMITS.items():
        parser.add_argument(f"--{field.replace('_', '-')}", metavar="N", help=text)
    options = parser.parse_args(arguments)
    given = {field: value for field in _LIMITS if (value := getattr(options, field)) is not None}
    token = new_token()
    entry = spell_tenant(options.name, token, given)
    print(f"The token of {options.name}, shown this once: {token}", file=sys.stderr)
    sys.stdout.write(entry)
    return 0
