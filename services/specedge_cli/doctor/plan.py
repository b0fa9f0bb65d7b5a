"""Which checks there are for which process, in which order."""

from collections.abc import Sequence
from functools import partial

from edge_agent.settings import EdgeSettings
from specedge.model.embedded import Role
from specedge.model.loader import resolve_device
from specedge.tls.rules import UNIX, is_loopback, is_loopback_host
from specedge_cli.doctor import (
    accelerator,
    access,
    advice,
    clock,
    expectation,
    machine,
    match,
    models,
    network,
    processor,
    self_tests,
    target_speed,
)
from specedge_cli.doctor.check import Check
from specedge_cli.doctor.facts import Facts
from specedge_cli.doctor.ports import PortUse, check_ports
from specedge_cli.doctor.tls_files import check_tls_files, named
from specedge_cli.doctor.verifier_link import VerifierLink
from specedge_verifier.settings import VerifierSettings

_MODELS_S = 20.0
_SELF_TEST_S = 30.0
_MEASURE_S = 30.0

ProcessSettings = VerifierSettings | EdgeSettings


def machine_checks(all_settings: Sequence[ProcessSettings]) -> list[Check]:
    """What both processes need of the machine."""
    group = "machine"
    main = all_settings[0]
    num_threads = sum(settings.num_threads or 1 for settings in all_settings)
    connections, setting = max(_connections(settings) for settings in all_settings)
    step_log = main.step_log if isinstance(main, VerifierSettings) else None
    computes = any(_computes_on_cpu(settings) for settings in all_settings)
    return [
        Check(group, "python", machine.check_python),
        Check(group, "cores", partial(machine.check_cores, num_threads, len(all_settings))),
        Check(group, "memory", machine.check_memory),
        *[
            Check(group, "gpu", partial(accelerator.check_accelerator, device, dtype), limit_s=15.0)
            for device, dtype in dict.fromkeys((settings.device, settings.dtype) for settings in all_settings)
        ],
        Check(group, "cpu features", partial(processor.check_processor, computes)),
        Check(group, "native library", partial(processor.check_native_library, main.engine, computes)),
        Check(group, "clock", clock.check_clock),
        Check(group, "open files", partial(machine.check_open_files, connections, setting)),
        Check(group, "disk", partial(machine.check_disk, step_log)),
    ]


def verifier_checks(settings: VerifierSettings) -> list[Check]:
    """What a verifier needs."""
    roles: list[Role] = ["target", "draft"] if settings.system == "server-only" else ["target"]
    group = "verifier: ports and files"
    uses = [PortUse("port", settings.host, settings.port, "grpc", settings.tls_certificate_file is not None)]
    if settings.metrics_port is not None:
        uses.append(PortUse("metrics_port", settings.metrics_host, settings.metrics_port, "metrics"))
    facts = Facts()
    return [
        Check(group, "ports", partial(check_ports, uses, facts)),
        *_tls_checks(group, settings, "tls_certificate_file", "tls_key_file", "tls_client_ca_file"),
        Check(group, "tenants", partial(access.check_tenants, settings.tenants_file, _lets_anybody_in(settings))),
        *_model_checks("verifier", settings, roles, facts),
        Check("verifier: expectation", "verifier step", partial(target_speed.check_target_step, settings),
              limit_s=_MEASURE_S, is_slow=True, late="skipped"),
        Check("verifier: settings", "settings", partial(advice.advise_verifier, settings), limit_s=_MODELS_S),
    ]  # fmt: skip


def edge_checks(settings: EdgeSettings, facts: Facts, link: VerifierLink) -> list[Check]:
    """What an edge needs, the verifier that it names included."""
    group = "edge: ports and files"
    uses = [PortUse("port", settings.host, settings.port, "http", settings.tls_certificate_file is not None)]
    if settings.metrics_port is not None:
        uses.append(PortUse("metrics_port", settings.metrics_host, settings.metrics_port, "metrics"))
    is_public = not is_loopback_host(settings.host)
    way, gain = "edge: way to the verifier", "edge: expectation"
    here = expectation.DraftHere()
    return [
        Check(group, "ports", partial(check_ports, uses, facts)),
        *_tls_checks(group, settings, "verifier_certificate_file", "verifier_key_file", "verifier_ca_file"),
        *_tls_checks(group, settings, "tls_certificate_file", "tls_key_file"),
        Check(group, "api keys", partial(access.check_api_keys, settings.api_keys_file, is_public)),
        Check("edge: models", "target tokenizer",
              partial(models.check_model_files, settings, "target", "tokenizer"), limit_s=_MODELS_S),
        *_model_checks("edge", settings, ["draft"], facts),
        Check(way, "address", partial(network.check_address, settings, facts), limit_s=8.0),
        Check(way, "tls", partial(network.check_tls, settings, facts), limit_s=10.0),
        Check(way, "answer", partial(network.check_answer, link, settings, facts), limit_s=10.0),
        Check(way, "served model", partial(match.check_match, settings, facts), limit_s=_MODELS_S),
        Check(way, "round trip", partial(network.check_round_trips, link, facts), limit_s=10.0),
        Check(way, "bandwidth", partial(network.check_bandwidth, link, facts),
              limit_s=25.0, is_slow=True, late="skipped"),
        Check(gain, "draft step", partial(expectation.check_draft_step, settings, facts, here),
              limit_s=_MEASURE_S, is_slow=True, late="skipped"),
        Check(gain, "session without drafts", partial(expectation.check_plain_session, link, facts),
              limit_s=20.0, is_slow=True),
        Check(gain, "session with drafts",
              partial(expectation.check_drafted_session, link, settings, facts, here),
              limit_s=20.0, is_slow=True, late="skipped"),
        Check(gain, "speed-up", partial(expectation.check_expectation, settings, facts), is_slow=True),
        Check("edge: settings", "settings", partial(advice.advise_edge, settings, facts), limit_s=_MODELS_S),
    ]  # fmt: skip


def names_own_verifier(edge: EdgeSettings, verifier: VerifierSettings) -> bool:
    """Whether the edge's verifier is the one of the other settings, on this machine."""
    address = edge.verifier_address
    if address.startswith(UNIX) or verifier.host.startswith(UNIX):
        return address == verifier.host
    return is_loopback(address) and address.rpartition(":")[2] == str(verifier.port)


def _model_checks(process: str, settings: ProcessSettings, roles: Sequence[Role], facts: Facts) -> list[Check]:
    group = f"{process}: models"
    max_len = settings.max_len if isinstance(settings, VerifierSettings) else None
    own = [role for role in roles if role == "target" or settings.draft_model is not None]
    slow = partial(Check, f"{process}: engines", limit_s=_SELF_TEST_S, is_slow=True, late="warn")
    return [
        *[Check(group, f"{role} model", partial(models.check_model_files, settings, role, "model"), limit_s=_MODELS_S)
          for role in own],
        *[Check(group, f"room for the {role} model", partial(models.check_room, settings, role, max_len, facts),
                limit_s=_MODELS_S) for role in own],
        *([Check(group, "tokenizers agree", partial(models.check_tokenizers, settings), limit_s=_MODELS_S)]
          if "draft" in own else []),
        *([slow("attention", partial(self_tests.check_attention, settings)),
           slow("engine native", partial(self_tests.check_native_engine, settings)),
           slow("engine against transformers",
                partial(self_tests.check_models_against_transformers, settings, own))]
          if own else []),
    ]  # fmt: skip


def _tls_checks(
    group: str, settings: ProcessSettings, certificate: str, key: str, authority: str | None = None
) -> list[Check]:
    names = [certificate, key, *([authority] if authority is not None else [])]
    files = [named(name, getattr(settings, name)) for name in names]
    if not any(files):
        return []
    return [Check(group, "tls files", partial(check_tls_files, files[0], files[1], files[2] if authority else None))]


def _connections(settings: ProcessSettings) -> tuple[int, str]:
    """Most connections at a time, and the setting that says so; edges put many sessions on one connection."""
    if isinstance(settings, VerifierSettings):
        return settings.max_batch_size, "max_batch_size"
    return settings.max_concurrent_requests, "max_concurrent_requests"


def _lets_anybody_in(settings: VerifierSettings) -> bool:
    return not is_loopback_host(settings.host) and settings.tls_client_ca_file is None


def _computes_on_cpu(settings: ProcessSettings) -> bool:
    if isinstance(settings, EdgeSettings) and settings.draft_model is None:
        return False
    return settings.device == "cpu" or (settings.device == "auto" and resolve_device("auto").type == "cpu")
