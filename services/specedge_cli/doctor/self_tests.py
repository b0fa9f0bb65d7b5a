"""Every engine and attention kernel that could run here, against the reference; of the others, why they cannot."""

import ctypes
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch

from specedge.drafting.settings import DrafterSettings
from specedge.model.attention.choose import candidate_backend
from specedge.model.attention.interface import AttentionBackend, AttentionUnavailable
from specedge.model.attention.self_test import TOLERANCES, self_test
from specedge.model.batch import chain
from specedge.model.embedded import EMBEDDED_NAME, Role, resolve_model
from specedge.model.engines import execution_of, foresee, load_for, make_runner
from specedge.model.loader import resolve_device, resolve_dtype
from specedge.model.native.build import load_library
from specedge.model.native.engine import declare
from specedge.model.native.self_test import find_fault
from specedge_cli.doctor.check import Finding, State
from specedge_cli.doctor.models import folder_of

_MAX_BYTES: Final = 2**30
_NUM_ROWS: Final = 24
_NUM_SLOTS: Final = 64
_SHAPE: Final = {"num_heads": 8, "num_kv_heads": 2, "head_dim": 64}
_AGREEMENT: Final = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 0.35}
_CHANGE: Final = "do not use it; the automatic choice takes another one. Please report this with the output of --json"


def check_attention(settings: DrafterSettings) -> Sequence[Finding]:
    """Each attention backend on the device and in the number formats that these settings may take."""
    device = resolve_device(settings.device)
    if device.type == "cpu":
        dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    else:
        wanted = resolve_dtype(settings.dtype, device)
        dtypes = (torch.bfloat16, torch.float16) if wanted == "auto" else (wanted,)
    names: tuple[Literal["sdpa", "triton", "flash"], ...] = ("sdpa", "triton", "flash")
    return [_attention(name, device, dtype, settings.attention) for name in names for dtype in dtypes]


def _attention(
    backend: Literal["sdpa", "triton", "flash"], device: torch.device, dtype: torch.dtype, wanted: str
) -> Finding:
    name = f"attention {backend}, {_spelled(dtype)}"
    try:
        candidate: AttentionBackend = candidate_backend(backend, device, dtype, **_SHAPE)
    except AttentionUnavailable as error:
        is_wanted = wanted == backend
        change = "set attention to auto" if is_wanted else ""
        return Finding(name, "fail" if is_wanted else "skipped", f"cannot run: {error}", change)
    try:
        found = self_test(candidate, device=device, dtype=dtype, **_SHAPE)
    # A compiler, its driver or the device may raise anything.
    except Exception as error:
        return Finding(
            name, "fail" if wanted == backend else "warn", f"raises {type(error).__name__}: {error}", _CHANGE
        )
    return judge_difference(name, found, TOLERANCES[dtype], str(device), is_wanted=wanted == backend)


def judge_difference(name: str, found: float, allowed: float, device: str, *, is_wanted: bool) -> Finding:
    """Whether results are near enough to the reference's."""
    text = f"differs from the reference by {found:.2g} at most on {device}, allowed is {allowed:.2g}"
    values = {"difference": found, "allowed": allowed}
    if found <= allowed:
        return Finding(name, "ok", text, values=values)
    return Finding(name, "fail" if is_wanted else "warn", text, _CHANGE, values)


def check_native_engine(settings: DrafterSettings) -> Sequence[Finding]:
    """The native library, built if need be, on tiny random models against plain torch."""
    if resolve_device(settings.device).type != "cpu":
        return [Finding("engine native", "skipped", "cannot run: it is for the CPU, and the device is a GPU")]
    library: ctypes.CDLL | None = load_library()
    if library is None:
        return [judge_native(None, has_library=False, is_wanted=settings.engine == "native")]
    declare(library)
    return [judge_native(find_fault(library), has_library=True, is_wanted=settings.engine == "native")]


def judge_native(fault: str | None, *, has_library: bool, is_wanted: bool) -> Finding:
    """What its self-test says."""
    bad: State = "fail" if is_wanted else "warn"
    if not has_library:
        change = "install a C compiler (Debian: apt install gcc), or set engine to auto"
        return Finding("engine native", bad, "cannot run: the library was not built (see `native library`)", change)
    if fault is not None:
        return Finding("engine native", bad, f"self-test: {fault}", _CHANGE)
    return Finding("engine native", "ok", "tiny random models: logits are torch's, trees and chains, twice the same")


def check_models_against_transformers(settings: DrafterSettings, roles: Sequence[Role]) -> Sequence[Finding]:
    """The engine that these settings take against transformers, on their own model if it is small, else the embedded.

    Args:
        roles: whose weights this process loads.
    """
    findings = []
    for role in roles:
        name = settings.target_model if role == "target" else settings.draft_model
        if name is None:
            continue
        folder = folder_of(name, role)
        if folder is None or _is_large(settings, folder):
            name, folder = EMBEDDED_NAME, Path(resolve_model(EMBEDDED_NAME, role))
        findings.append(_against_transformers(settings, name, folder, role))
    return findings


def _is_large(settings: DrafterSettings, folder: Path) -> bool:
    there = foresee(settings.engine, folder, settings.device, settings.dtype, settings.attention)
    return there.weight_bytes > _MAX_BYTES


def _against_transformers(settings: DrafterSettings, name: str, folder: Path, role: Role) -> Finding:
    model = load_for(settings.engine, str(folder), settings.device, settings.dtype, attention=settings.attention)
    own = make_runner(model, _NUM_SLOTS)
    engine = execution_of(model, own).engine
    title = f"engine {engine} on the {role} model {name}"
    if engine == "transformers":
        return Finding(title, "skipped", "it is the reference itself")
    oracle = make_runner(load_for("transformers", str(folder), settings.device, settings.dtype), _NUM_SLOTS)
    token_ids = np.random.default_rng(7).integers(0, own.vocab_size, _NUM_ROWS)
    batch = replace(chain(_NUM_ROWS), token_ids=token_ids)
    mine, theirs = own.forward(batch).cpu(), oracle.forward(batch).cpu()
    difference = float((mine - theirs).abs().max() / theirs.std())
    num_same = int((mine.argmax(dim=-1) == theirs.argmax(dim=-1)).sum())
    return judge_against_transformers(title, difference, num_same, _allowed(settings))


def judge_against_transformers(title: str, difference: float, num_same: int, allowed: float) -> Finding:
    """Whether logits are near transformers', relative to how much logits differ from each other."""
    found = (
        f"logits differ from transformers' by {difference:.2g} of their spread (allowed {allowed:.2g}), "
        f"the best token is the same in {num_same} of {_NUM_ROWS} rows"
    )
    values = {"difference": difference, "num_same": num_same}
    if difference <= allowed:
        return Finding(title, "ok", found, values=values)
    return Finding(title, "fail", found, "set engine to transformers, and please report this with --json", values)


def _allowed(settings: DrafterSettings) -> float:
    dtype = resolve_dtype(settings.dtype, resolve_device(settings.device))
    return _AGREEMENT[torch.bfloat16 if dtype == "auto" else dtype]


def _spelled(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
