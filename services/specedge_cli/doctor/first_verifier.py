"""Where several verifiers are named: the first is checked, and the others are named to be checked in turn."""

from collections.abc import Sequence
from pathlib import Path

from edge_agent.settings import EdgeSettings
from edge_agent.verifier_addresses import DNS, FILE, read_addresses, split_addresses
from specedge_cli.doctor.check import Finding


def named_verifiers(settings: EdgeSettings) -> tuple[str, ...]:
    """The addresses that the setting names; of a DNS name all at once.

    Raises:
        SettingsError: a file that it names cannot be used.
    """
    text = settings.verifier_address
    if text.startswith(DNS):
        return (text[len(DNS) :],)
    if text.startswith(FILE):
        allows_plaintext = settings.allow_plaintext or settings.verifier_ca_file is not None
        return read_addresses(Path(text[len(FILE) :].strip()), allows_plaintext)
    return split_addresses(text)


def say_which(named: Sequence[str]) -> list[Finding]:
    """What is checked of several verifiers."""
    first, *others = named
    rest = ", ".join(others)
    found = f"{len(named)} verifiers are named, and {first} is the one checked here"
    return [Finding("verifiers", "warn", found, f"check the others too: --verifier-address with each of {rest}")]
