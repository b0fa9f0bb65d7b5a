"""Certificate files: usable, and for how long still."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from specedge.errors import SettingsError
from specedge.tls.files import NamedFile, TlsFiles, read_tls
from specedge_cli.doctor.check import Finding
from specedge_cli.doctor.private_file import judge_mode

_SOON: Final = timedelta(days=14)


def check_tls_files(
    certificate: NamedFile | None, key: NamedFile | None, authority: NamedFile | None
) -> Sequence[Finding]:
    """The files of one end of a link; no findings where there are none."""
    files = TlsFiles(certificate, key, authority)
    if not files.present:
        return []
    name = "tls files " + ", ".join(file.setting for file in files.present)
    try:
        material = read_tls(files)
    except SettingsError as error:
        return [Finding(name, "fail", str(error), _remedy(str(error)))]
    findings = [Finding(name, "ok", ", ".join(str(file.path) for file in files.present))]
    if certificate is not None and material.expires_at is not None:
        whose = str(certificate)
        findings.append(judge_remaining(certificate.setting, whose, material.expires_at, datetime.now(UTC)))
    if key is not None:
        findings += judge_mode(key.setting, key.path, "the private key")
    return findings


def judge_remaining(name: str, whose: str, expires_at: datetime, now: datetime) -> Finding:
    """How long a certificate is still valid."""
    left = expires_at - now
    found = f"{whose} is valid until {expires_at:%Y-%m-%d %H:%M} UTC, {left.days} days"
    values = {"remaining_days": round(left / timedelta(days=1), 2)}
    if left <= timedelta(0):
        return Finding(name, "fail", f"{whose} expired on {expires_at:%Y-%m-%d %H:%M} UTC", "renew it", values)
    if left < _SOON:
        return Finding(name, "warn", found, "renew it soon; the files are read again without a restart", values)
    return Finding(name, "ok", found, values=values)


def named(setting: str, path: Path | None) -> NamedFile | None:
    """The file that a setting names."""
    return None if path is None else NamedFile(setting, path)


def _remedy(message: str) -> str:
    if "expired" in message:
        return "renew it (`specedge certs` makes one to try with)"
    if "cannot be read" in message:
        return "correct the path, or let this user read the file"
    if "valid only from" in message:
        return "set this machine's clock right"
    return "put the right file there"
