"""What the live verifier serves, against what this edge is set to."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from edge_agent.settings import EdgeSettings
from specedge import __version__
from specedge.model.embedded import EMBEDDED_NAME
from specedge.tokenizer import load_tokenizer, tokenizer_fingerprint
from specedge.wire.messages import DRAFT_TRIES, GRAMMARS, LOGPROBS, TOKEN_MASKS, ServerInfo
from specedge_cli.doctor.check import Finding
from specedge_cli.doctor.facts import Facts
from specedge_cli.doctor.models import folder_of

_TEXT: Final = "The fox went down to the river, and there it met an old man who had lost his hat. "
_DEMO_NAME: Final = "specedge-demo"
_WHAT_FOR: Final = {
    GRAMMARS: "structured output (install the extra 'structured' on the verifier)",
    LOGPROBS: "logprobs",
    TOKEN_MASKS: "bad_words and allowed_token_ids",
}


def check_match(settings: EdgeSettings, facts: Facts) -> Sequence[Finding]:
    """Tokenizer, name, version, capabilities and context of the verifier."""
    folder = folder_of(settings.target_model, "target")
    if folder is not None:
        tokenizer = load_tokenizer(str(folder))
        facts.fingerprint = tokenizer_fingerprint(tokenizer)
        facts.prompt_ids = tuple(tokenizer(_TEXT)["input_ids"])
    if facts.info is None:
        return [Finding("served model", "skipped", "the verifier did not answer")]
    findings = [*judge_served(facts.info, settings.target_model), *judge_capabilities(facts.info)]
    if facts.fingerprint is None:
        return [Finding("tokenizer", "skipped", "the target's files are not here"), *findings]
    return [judge_fingerprint(facts.fingerprint, facts.info, settings.target_model), *findings]


def judge_fingerprint(own: str, info: ServerInfo, target_model: str) -> Finding:
    """Whether token ids mean the same to both."""
    values = {"edge_fingerprint": own, "verifier_fingerprint": info.tokenizer_fingerprint}
    if own == info.tokenizer_fingerprint:
        return Finding("tokenizer", "ok", f"edge and verifier have fingerprint {own[:12]}", values=values)
    found = f"{target_model} here has {own[:12]}, {info.target_model} at the verifier has "
    change = f"set target_model to the verifier's, {info.target_model}, and draft_model to one of its family"
    return Finding("tokenizer", "fail", found + info.tokenizer_fingerprint[:12], change, values)


def judge_served(info: ServerInfo, target_model: str) -> list[Finding]:
    """Name, versions and context."""
    own_name = _DEMO_NAME if target_model == EMBEDDED_NAME else target_model
    values = {"max_len": info.max_len, "max_batch_size": info.max_batch_size, "protocol": info.protocol_version}
    found = (
        f"{info.target_model}, context of {info.max_len:,} tokens, {info.max_batch_size} sessions a step, protocol "
        f"{info.protocol_version}"
    )
    findings = [Finding("served model", "ok", found, values=values)]
    if Path(info.target_model).name != Path(own_name).name:
        found = f"the verifier serves {info.target_model}, and target_model here is {target_model}"
        change = "set target_model to the same: its chat template is taken from there"
        findings = [Finding("served model", "warn", found, change, values)]
    if info.server_version != __version__:
        found = f"the verifier is {info.server_version}, this edge {__version__}"
        findings.append(Finding("version", "warn", found, "bring both to one version; the protocol is the same"))
    return findings


def judge_capabilities(info: ServerInfo) -> list[Finding]:
    """What the verifier does, and what requests will be refused."""
    if DRAFT_TRIES not in info.capabilities:
        found = "the verifier takes no drafts: it drafts for itself or not at all"
        change = "run it with system specedge, or set draft_model to none and lookup to off here"
        return [Finding("capabilities", "warn", found, change)]
    missing = [what for capability, what in _WHAT_FOR.items() if capability not in info.capabilities]
    found = ", ".join(info.capabilities)
    if missing:
        return [Finding("capabilities", "warn", found, f"requests will be refused for: {', '.join(missing)}")]
    return [Finding("capabilities", "ok", found)]
