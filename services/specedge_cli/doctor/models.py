"""The model files: there, whole, readable; what would compute them, and whether that fits the device."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from huggingface_hub import try_to_load_from_cache

from specedge.drafting.settings import DrafterSettings
from specedge.errors import ModelLoadError
from specedge.model.checkpoint import INDEX_FILE, SINGLE_FILE, check_tokenizer_folder, local_folder
from specedge.model.embedded import EMBEDDED_NAME, Role, resolve_model
from specedge.model.engines import Foreseen, foresee
from specedge.model.loader import resolve_device
from specedge.model.memory import free_bytes, mib
from specedge.tokenizer import load_tokenizer, tokenizer_fingerprint
from specedge_cli.doctor.check import Finding
from specedge_cli.doctor.facts import Facts

_DEFAULT_SLOTS: Final = 65_536
_TIGHT: Final = 0.9
Part = Literal["model", "tokenizer"]


def check_model_files(settings: DrafterSettings, role: Role, part: Part) -> Sequence[Finding]:
    """Whether a model's files are there and whole.

    Args:
        role: which of the two.
        part: an edge reads only the target's tokenizer.
    """
    name = settings.target_model if role == "target" else settings.draft_model
    if name is None:
        return [Finding(f"{role} {part}", "skipped", f"{role}_model is none")]
    try:
        folder = folder_of(name, role)
        if folder is None:
            return [_not_here(name, role, part)]
        check_tokenizer_folder(folder)
        if part == "tokenizer":
            return [Finding(f"{role} {part}", "ok", f"{name}: {folder}")]
        there = foresee(settings.engine, folder, settings.device, settings.dtype, settings.attention)
    except ModelLoadError as error:
        if "/" in name and not Path(name).expanduser().exists() and not Path(name).is_absolute():
            found = f"{name} is in the Hugging Face cache in part: {error}"
            return [Finding(f"{role} {part}", "warn", found, "the first start downloads the rest")]
        change = f"repair or fetch the files again, or set {role}_model to another model"
        return [Finding(f"{role} {part}", "fail", str(error), change)]
    return [_describe(name, role, folder, there)]


def folder_of(name: str, role: Role) -> Path | None:
    """The folder of a model that is on this machine, in the hub's cache too; None where it is not.

    Raises:
        ModelLoadError: the name can only be a path, and there is no such folder.
    """
    folder = local_folder(resolve_model(name, role))
    if folder is not None:
        return folder
    config = try_to_load_from_cache(name, "config.json")
    return Path(config).parent if isinstance(config, str) else None


def _not_here(name: str, role: Role, part: Part) -> Finding:
    found = f"{name} is neither a local folder nor in the Hugging Face cache"
    return Finding(f"{role} {part}", "warn", found, f"the first start downloads it; or: `hf download {name}` now")


def _describe(name: str, role: Role, folder: Path, there: Foreseen) -> Finding:
    is_whole = any((folder / file).is_file() for file in (SINGLE_FILE, INDEX_FILE))
    reason = f" (not a faster one: {there.reason})" if there.reason else ""
    found = f"{name}: {mib(there.weight_bytes)} in memory, engine {there.engine}{reason}"
    if there.max_positions is not None:
        found += f", context up to {there.max_positions:,} tokens"
    values = {"weight_bytes": there.weight_bytes, "engine": there.engine, "kv_bytes_per_token": there.kv_bytes}
    if not is_whole:
        change = "convert it to safetensors: engines native and lean read nothing else"
        return Finding(f"{role} model", "warn", found, change, values)
    return Finding(f"{role} model", "ok", found, values=values)


def check_room(settings: DrafterSettings, role: Role, max_len: int | None, facts: Facts) -> Sequence[Finding]:
    """Whether weights and keys and values fit the device, as far as the files tell.

    Args:
        max_len: of a target: tokens of its longest session; None: as many as the model knows.
    """
    if facts.runs_already:
        return [Finding(f"room for the {role} model", "skipped", "the process runs already and has its memory")]
    name = settings.target_model if role == "target" else settings.draft_model
    folder = None if name is None else folder_of(name, role)
    if folder is None:
        return [Finding(f"room for the {role} model", "skipped", "its files are not here")]
    there = foresee(settings.engine, folder, settings.device, settings.dtype, settings.attention)
    if role == "draft":
        num_tokens, what = settings.num_draft_slots or _DEFAULT_SLOTS, "num_draft_slots"
    else:
        num_tokens, what = max_len or there.max_positions or 0, "one session of max_len"
    device = resolve_device(settings.device)
    graph_bytes = settings.graph_bytes if device.type == "cuda" and there.engine == "lean" else 0
    return [judge_room(role, there, num_tokens, what, graph_bytes, str(device), free_bytes(device))]


def judge_room(
    role: Role, there: Foreseen, num_tokens: int, what: str, graph_bytes: int, device: str, free: int
) -> Finding:
    """Weights, graphs and the least useful KV cache against what is free."""
    kv_bytes = num_tokens * there.kv_bytes
    needed = there.weight_bytes + kv_bytes + graph_bytes
    name = f"room for the {role} model"
    graphs = f", {mib(graph_bytes)} graphs" if graph_bytes else ""
    found = (
        f"needs {mib(needed)} ({mib(there.weight_bytes)} weights, {mib(kv_bytes)} keys and values for {what}{graphs}), "
        f"{device} has {mib(free)} free"
    )
    values = {"needed_bytes": needed, "free_bytes": free}
    lower = "num_draft_slots" if role == "draft" else "max_len"
    if needed > free:
        change = (
            f"free memory on {device}, lower {lower}{' or graph_memory_mib' * bool(graph_bytes)}, or take a smaller "
        )
        return Finding(name, "fail", found, change + "model or dtype (is another process already using it?)", values)
    if needed > _TIGHT * free:
        change = f"leave more: lower {lower} or take a smaller dtype"
        return Finding(name, "warn", found, change, values)
    return Finding(name, "ok", found, values=values)


def check_tokenizers(settings: DrafterSettings) -> Sequence[Finding]:
    """Whether target and draft model give the same tokens the same ids."""
    name = "tokenizers agree"
    if settings.draft_model is None:
        return [Finding(name, "skipped", "draft_model is none")]
    target, draft = folder_of(settings.target_model, "target"), folder_of(settings.draft_model, "draft")
    if target is None or draft is None:
        return [Finding(name, "skipped", "the files of one of them are not here")]
    return [judge_tokenizers(fingerprint_of(target), fingerprint_of(draft), settings)]


def fingerprint_of(folder: Path) -> str:
    """Of the tokenizer in a folder."""
    return tokenizer_fingerprint(load_tokenizer(str(folder)))


def judge_tokenizers(target: str, draft: str, settings: DrafterSettings) -> Finding:
    """Whether the fingerprints are equal."""
    values = {"target_fingerprint": target, "draft_fingerprint": draft}
    if target == draft:
        return Finding("tokenizers agree", "ok", f"both have fingerprint {target[:12]}", values=values)
    found = f"{settings.target_model} has {target[:12]}, {settings.draft_model} has {draft[:12]}"
    change = "take a draft model of the target's own family: token ids must mean the same to both"
    return Finding("tokenizers agree", "fail", found, change, values)


def is_demo(settings: DrafterSettings) -> bool:
    """Whether the embedded models are used."""
    return EMBEDDED_NAME in (settings.target_model, settings.draft_model)
