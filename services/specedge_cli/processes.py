"""The two processes as the command line sees them."""

from edge_agent.settings import EdgeSettings
from specedge.settings_sources import ProcessKind, load_settings
from specedge_cli.cores import available_cores, model_threads
from specedge_verifier.settings import VerifierSettings

VERIFIER = ProcessKind("verifier", VerifierSettings)
EDGE = ProcessKind("edge", EdgeSettings)


def load_verifier_settings(arguments: list[str]) -> VerifierSettings:
    settings = load_settings(VERIFIER, [EDGE], arguments)
    assert isinstance(settings, VerifierSettings)
    of_rank = max(1, model_threads(available_cores()) // settings.tensor_parallel_size)
    return settings.replace(num_threads=settings.num_threads or of_rank)


def load_edge_settings(arguments: list[str]) -> EdgeSettings:
    settings = load_settings(EDGE, [VERIFIER], arguments)
    assert isinstance(settings, EdgeSettings)
    return settings.replace(num_threads=settings.num_threads or model_threads(available_cores()))
