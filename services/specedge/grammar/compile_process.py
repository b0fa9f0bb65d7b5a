"""The process that compiles grammars, so that none of them can hold or harm the one that serves.

A grammar of a few bytes can need minutes and gigabytes to compile, and the compiler cannot be interrupted. This process
loads it once and forks for each grammar; the kernel ends a child that uses too much.
"""

import contextlib
import json
import os
import re
import resource
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Final

import xgrammar

from specedge.grammar.lazy_grammar import lazy_grammar
from specedge.grammar.lazy_matcher import LazyVocabulary
from specedge.grammar.matcher import BeginMatcher
from specedge.grammar.probe import is_slow
from specedge.grammar.productive import admits_something
from specedge.grammar.schema import MAX_WHITESPACE

MAX_COMPILED_BYTES: Final = 16 * 1024 * 1024
MAX_SERIALISED_BYTES: Final = 16 * 1024 * 1024
MAX_AGAIN_S: Final = 0.2
"""A grammar that took no longer is compiled again by who asked, beside its other threads: reading it takes longer."""
_ORIGIN: Final = re.compile(
    r"\[\d\d:\d\d:\d\d\] \S+:\d+: |Check failed: \(.*?\) is false: |(Invalid JSON error: )(?=\[)"
)
_WARNING: Final = re.compile(r"^.*?Warning: (.*)$", re.MULTILINE)
_MAX_REASON_CHARS: Final = 300


def main(control_fd: int) -> None:
    """Serve until the other end closes: the first connection brings the vocabulary, each later one a grammar."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that serves
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are not waited for
    control = socket.socket(fileno=control_fd)
    vocabulary = None
    while (connection := _next_connection(control)) is not None:
        with connection:
            if vocabulary is None:
                content = _received(connection)
                if _is_left(control):
                    return
                info = xgrammar.TokenizerInfo.deserialize_json(content.decode())
                vocabulary = info, LazyVocabulary(info)
                with contextlib.suppress(ConnectionError):  # nobody is left to be told; the loop ends
                    connection.sendall(b"ready")
            elif os.fork() == 0:
                control.close()
                _serve(connection, *vocabulary)


def _next_connection(control: socket.socket) -> socket.socket | None:
    content, fds, _, _ = socket.recv_fds(control, 1, 1)
    return socket.socket(fileno=fds[0]) if content and fds else None


def _is_left(control: socket.socket) -> bool:
    """Whether the process that serves has ended, perhaps before it had said all."""
    with contextlib.suppress(BlockingIOError):
        return not control.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    return False


def _received(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


def _serve(connection: socket.socket, tokenizer_info: xgrammar.TokenizerInfo, lazy: LazyVocabulary) -> None:
    """In the child: one grammar in, one answer out, and the end of the process, whatever happens."""
    try:
        request = json.loads(_received(connection))
        _limit(request["cpu_s"], request["memory_bytes"])
        with _scratch() as warnings:
            os.dup2(warnings.fileno(), sys.stderr.fileno())
            is_lazy, compiled = _compile(request["kind"], request["source"], tokenizer_info, lazy, warnings)
        _answer(connection, None, is_lazy, compiled)
    except _Refused as refused:
        _answer(connection, str(refused))
    except BaseException as error:
        with contextlib.suppress(OSError):
            _answer(connection, f"cannot be compiled: {type(error).__name__}")
    finally:
        os._exit(0)


def _scratch() -> IO[bytes]:
    """A file, in memory where the system has such ones: a full disk is not the grammar's fault."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("warnings"), "w+b")
    return tempfile.TemporaryFile()


def _limit(cpu_s: float, memory_bytes: int) -> None:
    """The kernel ends this process after so much processor time, and refuses it more memory."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    statm = Path("/proc/self/statm")
    if statm.exists():
        now = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + memory_bytes, now + memory_bytes))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, cpu_s)


class _Refused(Exception):
    """The grammar is refused, for the reason given."""


def _answer(connection: socket.socket, reason: str | None, is_lazy: bool = False, compiled: str = "") -> None:
    connection.sendall(json.dumps({"reason": reason, "is_lazy": is_lazy}).encode() + b"\n" + compiled.encode())


def _compile(
    kind: str, source: str, tokenizer_info: xgrammar.TokenizerInfo, lazy: LazyVocabulary, warnings: IO[bytes]
) -> tuple[bool, str]:
    """The grammar as llguidance takes it (True), or compiled by xgrammar and serialised (False).

    Nothing in place of the latter where it compiles at once, and says nothing that who asked would have to swallow.
    """
    try:
        grammar = _parsed(kind, source)
        if grammar is not None and not admits_something(grammar.serialize_json()):
            raise _Refused("admits nothing: no finite text follows it")
        text = lazy_grammar(kind, source)
        if text is not None and (begin := _begun(lazy, text)) is not None:
            _check_warnings(kind, warnings)
            _check_speed(begin, tokenizer_info)
            return True, text
        started_s = time.process_time()
        compiled = compile_grammar(tokenizer_info, kind, source)
        spent_s = time.process_time() - started_s
    except RuntimeError as error:
        raise _Refused(f"is refused: {_reason(str(error))}") from None
    is_warned = _check_warnings(kind, warnings)
    if compiled.memory_size_bytes > MAX_COMPILED_BYTES:
        raise _Refused(f"needs {compiled.memory_size_bytes} bytes; it may need at most {MAX_COMPILED_BYTES}")
    _check_speed(lambda ends: xgrammar.GrammarMatcher(compiled, override_stop_tokens=list(ends)), tokenizer_info)
    if spent_s <= MAX_AGAIN_S and not is_warned:
        return False, ""
    serialised = compiled.serialize_json()
    if len(serialised) > MAX_SERIALISED_BYTES:
        raise _Refused(f"has {len(serialised)} bytes when compiled; it may have at most {MAX_SERIALISED_BYTES}")
    return False, serialised


def _begun(lazy: LazyVocabulary, text: str) -> BeginMatcher | None:
    """None where llguidance does not take the grammar, which xgrammar may."""
    try:
        return lazy.begin(text)
    except ValueError:
        return None


def _check_warnings(kind: str, warnings: IO[bytes]) -> bool:
    """Whether there was a warning of a part that is left out; only an EBNF grammar may be served in spite of one."""
    warnings.seek(0)
    warning = _WARNING.search(warnings.read().decode(errors="replace"))
    if warning is not None and kind != "ebnf":
        raise _Refused(f"cannot be enforced: {warning[1][:_MAX_REASON_CHARS]}")
    return warning is not None


def _check_speed(begin: BeginMatcher, tokenizer_info: xgrammar.TokenizerInfo) -> None:
    if is_slow(lambda: begin(tokenizer_info.stop_token_ids), tokenizer_info.vocab_size):
        raise _Refused("is too ambiguous: following it takes too long for each token")


def _parsed(kind: str, source: str) -> xgrammar.Grammar | None:
    """The grammar before it is compiled; None for a structural tag, which may name tokens and needs the vocabulary."""
    if kind == "json_schema":
        return xgrammar.Grammar.from_json_schema(source)
    if kind == "regex":
        return xgrammar.Grammar.from_regex(source)
    return xgrammar.Grammar.from_ebnf(source) if kind == "ebnf" else None


def compile_grammar(tokenizer_info: xgrammar.TokenizerInfo, kind: str, source: str) -> xgrammar.CompiledGrammar:
    """The compiled grammar; takes as long and as much memory as it takes.

    Raises:
        RuntimeError: the source is wrong.
    """
    compiler = xgrammar.GrammarCompiler(tokenizer_info, max_threads=1, cache_enabled=False)
    if kind == "json_schema":
        return compiler.compile_json_schema(source, max_whitespace_cnt=MAX_WHITESPACE)
    if kind == "regex":
        return compiler.compile_regex(source)
    if kind == "ebnf":
        return compiler.compile_grammar(source)
    assert kind == "structural_tag", kind
    return compiler.compile_structural_tag(source)


def _reason(message: str) -> str:
    return " ".join(_ORIGIN.sub("", message).split())[:_MAX_REASON_CHARS]


if __name__ == "__main__":
    main(int(sys.argv[1]))
