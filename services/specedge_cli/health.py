"""`specedge health`: asks a running process whether it is ready."""

import argparse
from pathlib import Path

from specedge.errors import SettingsError
from specedge.tls.diagnosis import ClientTls
from specedge_cli.probe import probe


def show_health(arguments: list[str]) -> int:
    """Print one line about the process.

    Returns:
        0 when it is ready, 1 when not.

    Raises:
        SettingsError: the flags do not go together, or a file cannot be used.
    """
    parser = argparse.ArgumentParser(
        prog="specedge health",
        description="Asks a running process whether it is ready; exit code 0 or 1. A verifier that speaks TLS is asked "
        "with --ca-file; one that wants certificates of its clients, with --certificate-file and --key-file as well.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "address", help="HOST:PORT or unix:PATH of a verifier, http://HOST:PORT or https://HOST:PORT of an edge agent"
    )
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds to wait for an answer (default 5)")
    parser.add_argument("--ca-file", type=Path, metavar="FILE", help="authorities of the process's certificate")
    parser.add_argument("--certificate-file", type=Path, metavar="FILE", help="the certificate to show to it")
    parser.add_argument("--key-file", type=Path, metavar="FILE", help="that certificate's private key")
    parser.add_argument("--name", help="name its certificate must have (default: the address's host)")
    options = parser.parse_args(arguments)
    failure = probe(options.address, options.timeout, _tls(options))
    print(f"{options.address}: {failure or 'ready'}")
    return 1 if failure else 0


def _tls(options: argparse.Namespace) -> ClientTls | None:
    if (options.certificate_file is None) != (options.key_file is None):
        raise SettingsError("--certificate-file and --key-file belong together")
    if options.name is not None and options.address.startswith("http"):
        raise SettingsError("--name is for verifiers; put the name into the address of an edge agent")
    if options.ca_file is None:
        if options.certificate_file is not None or options.name is not None:
            raise SettingsError("--certificate-file and --name take TLS: --ca-file is not given")
        return None
    return ClientTls(options.ca_file, options.certificate_file, options.key_file, options.name)
