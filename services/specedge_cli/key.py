"""`specedge key`: makes an API key."""

import argparse
import sys

from edge_agent.http.api_keys import new_key, spell_entry


def make_key(arguments: list[str]) -> int:
    """Print a fresh key's entry for the key file on standard output, and the key itself, once, on standard error.

    Raises:
        SettingsError: the name or a limit is not allowed.
    """
    parser = argparse.ArgumentParser(
        prog="specedge key",
        description="Make an API key. Its entry for the edge's api_keys_file goes to standard output, the key itself "
        "to standard error; it is shown this once and kept nowhere.",
        epilog="specedge key alice >> keys.yaml",
        allow_abbrev=False,
    )
    parser.add_argument("name", metavar="NAME", help="who the key is for; metrics show it")
    parser.add_argument("--requests-per-minute", type=int, metavar="N", help="most requests in a minute")
    parser.add_argument("--max-concurrent", type=int, metavar="N", help="most requests at a time")
    options = parser.parse_args(arguments)
    key = new_key()
    entry = spell_entry(options.name, key, options.requests_per_minute, options.max_concurrent)
    print(f"The key of {options.name}, shown this once: {key}", file=sys.stderr)
    sys.stdout.write(entry)
    return 0
