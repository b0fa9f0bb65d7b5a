"""Reads a process's settings: defaults < YAML file < environment < flags.

Every value is known by the place it came from, so that a refusal can name the setting, its value, that place and what
is allowed. Nothing unknown is ignored: a key, variable or flag that is no setting is refused.
"""

import argparse
import difflib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml
from pydantic import ValidationError
from pydantic_settings import EnvSettingsSource, YamlConfigSettingsSource

from specedge.errors import SettingsError
from specedge.settings import ProcessSettings
from specedge.settings_table import SettingEntry, setting_table

PREFIX = "SPECEDGE_"
CONFIG_VARIABLE = PREFIX + "CONFIG"


@dataclass(frozen=True, slots=True)
class ProcessKind:
    """A process that reads settings.

    Args:
        name: its section in a YAML file and its part of an environment variable (`SPECEDGE_VERIFIER__PORT`).
        settings_class: what is read.
    """

    name: str
    settings_class: type[ProcessSettings]


@dataclass(frozen=True, slots=True)
class _Given:
    value: Any
    origin: str


def load_settings(process: ProcessKind, others: Sequence[ProcessKind], arguments: Sequence[str]) -> ProcessSettings:
    """Read the settings of `process`.

    Args:
        process: whose settings are wanted.
        others: processes that may share the file and the environment; their settings are known here and not used.
        arguments: command-line flags. `--help` prints every setting and raises SystemExit(0).

    Raises:
        SettingsError: a setting is unknown, or a value is not allowed.
    """
    table = setting_table(process.settings_class)
    flags, config = _read_flags(process, table, arguments)
    _refuse_unknown_variables([process, *others])
    given = {
        **_read_file(process, others, config or os.environ.get(CONFIG_VARIABLE)),
        **_read_environment(process, PREFIX),
        **_read_environment(process, f"{PREFIX}{process.name.upper()}__"),
        **flags,
    }
    return _build(process, table, given)


def settings_of(process: ProcessKind, section: dict[str, Any], origin: str) -> ProcessSettings:
    """The settings that a section of some other file describes; environment and flags have no say.

    Args:
        process: whose settings they are.
        section: keys and values, as `load_yaml` reads them.
        origin: where the section stands, for messages.

    Raises:
        SettingsError: a setting is unknown, or a value is not allowed.
    """
    return _build(process, setting_table(process.settings_class), _check_keys(process, (), section, origin))


def _build(process: ProcessKind, table: dict[str, SettingEntry], given: dict[str, _Given]) -> ProcessSettings:
    try:
        return process.settings_class(**_nest({name: entry.value for name, entry in given.items()}))
    except ValidationError as error:
        raise SettingsError("\n  ".join(dict.fromkeys(_explain(error, table, given)))) from None


def _explain(error: ValidationError, table: dict[str, SettingEntry], given: dict[str, _Given]) -> Iterable[str]:
    for detail in error.errors():
        name = ".".join(str(part) for part in detail["loc"] if isinstance(part, str) and part.islower())
        while name and name not in table:
            name = name.rpartition(".")[0]
        if not name:
            yield detail["msg"].removeprefix("Value error, ")
            continue
        source = given[name]
        yield f"{name} = {source.value!r} ({source.origin}): allowed is {table[name].allowed}"


def _read_flags(
    process: ProcessKind, table: dict[str, SettingEntry], arguments: Sequence[str]
) -> tuple[dict[str, _Given], str | None]:
    parser = _FlagParser(process, table)
    values = vars(parser.parse_args([_hyphenated(argument) for argument in arguments]))
    config = values.pop("config")
    given = {name: _Given(value, f"flag {table[name].flag}") for name, value in values.items() if value is not None}
    return given, config


def _hyphenated(argument: str) -> str:
    """`--max_batch_size=4` and `--max-batch-size=4` are the same flag."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


class _FlagParser(argparse.ArgumentParser):
    def __init__(self, process: ProcessKind, table: dict[str, SettingEntry]) -> None:
        super().__init__(
            prog=f"specedge {process.name}",
            description=f"Runs the {process.name}. Every setting may be given as a flag, as an environment variable "
            f"({PREFIX}MAX_BATCH_SIZE, nested {PREFIX}PROACTIVE__TYPE, for this process alone "
            f"{PREFIX}{process.name.upper()}__PORT) or as a key of a YAML file, flat or under '{process.name}:'; "
            "a flag wins over a variable, a variable over the file, the file over the default.",
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30),
        )
        self._known_flags = ["--config", "--help"]
        self.add_argument(
            "--config", metavar="FILE", help=f"YAML file with settings ({CONFIG_VARIABLE} names one as well)"
        )
        for entry in table.values():
            text = f"{entry.description} [{entry.allowed}; default {entry.default}]".replace("%", "%%")
            self.add_argument(entry.flag, dest=entry.name, metavar="VALUE", help=text)
            self._known_flags.append(entry.flag)

    def parse_args(self, args: Sequence[str], namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]
        values, extra = self.parse_known_args(args)
        if extra:
            flag, _, value = extra[0].partition("=")
            value = value or " ".join(extra[1:2])
            what = f"{flag} (value {value!r})" if value and not value.startswith("--") else flag
            raise SettingsError(f"{what} is no flag of {self.prog}; {_suggestion(flag, self._known_flags, self.prog)}")
        return values

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message}; `{self.prog} --help` lists every setting")


def _refuse_unknown_variables(processes: Sequence[ProcessKind]) -> None:
    known = {CONFIG_VARIABLE}
    for process in processes:
        for entry in setting_table(process.settings_class).values():
            known |= {PREFIX + entry.variable, f"{PREFIX}{process.name.upper()}__{entry.variable}"}
    for variable, value in sorted(os.environ.items()):
        if variable.upper().startswith(PREFIX) and variable.upper() not in known:
            raise SettingsError(
                f"{variable} = {value!r} (environment variable) is no setting; "
                + _suggestion(variable.upper(), sorted(known), f"specedge {processes[0].name}")
            )


def _read_environment(process: ProcessKind, prefix: str) -> dict[str, _Given]:
    source = EnvSettingsSource(
        process.settings_class, env_prefix=prefix, env_nested_delimiter="__", env_ignore_empty=True
    )
    return {
        name: _Given(value, f"environment variable {prefix}{name.replace('.', '__').upper()}")
        for name, value in _flatten(source()).items()
    }


class StrictLoader(yaml.BaseLoader):
    """YAML with every scalar as text, as in the environment (`off` is no boolean here), and no key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"key {key!r} is given twice, line {node.start_mark.line + 1} on")
        return super().construct_mapping(node, deep)


def load_yaml(path: Path, what: str) -> dict[str, Any]:
    """A YAML file of keys and values, all scalars as text; an empty file has none.

    Raises:
        SettingsError: it cannot be read, or holds something else; `what` says in the message what the file is.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=StrictLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"{path} ({what}) cannot be read: {error}") from None
    if content in (None, ""):
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"{path} ({what}) must hold keys and values, found {content!r:.60}")
    return content


class _FileSource(YamlConfigSettingsSource):
    def _read_file(self, file_path: Any) -> dict[str, Any]:
        return load_yaml(Path(file_path), "settings file")


def _read_file(process: ProcessKind, others: Sequence[ProcessKind], path: str | None) -> dict[str, _Given]:
    if path is None:
        return {}
    if not Path(path).is_file():
        raise SettingsError(f"{path} (settings file) does not exist")
    content = dict(_FileSource(process.settings_class, yaml_file=path)())
    sections = {kind.name: kind for kind in [process, *others]}
    if not sections.keys() & content.keys():
        return _check_keys(process, others, content, path)
    if stray := sorted(content.keys() - sections.keys()):
        raise SettingsError(f"{stray[0]} ({path}) stands beside the sections {', '.join(sections)}; put it into one")
    for name, section in content.items():
        if section != "" and not isinstance(section, dict):
            raise SettingsError(f"{name} = {section!r} ({path}) must be a section with keys and values")
    read = {name: _check_keys(sections[name], (), section or {}, path) for name, section in content.items()}
    return read.get(process.name, {})


def _check_keys(
    process: ProcessKind, others: Sequence[ProcessKind], section: dict[str, Any], path: str
) -> dict[str, _Given]:
    table = setting_table(process.settings_class)
    flat = _flatten(section)
    for name, value in flat.items():
        if name in table:
            continue
        owners = [other.name for other in others if name in setting_table(other.settings_class)]
        raise SettingsError(
            f"{name} = {value!r} ({path}) is no setting of the {process.name}; "
            + (f"a file for both processes has it under '{owners[0]}:'. " if owners else "")
            + _suggestion(name, list(table), f"specedge {process.name}")
        )
    return {name: _Given(value, path) for name, value in flat.items() if value not in ("", "null", "~")}


def _suggestion(word: str, known: Sequence[str], program: str) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return (f"did you mean {close[0]}? " if close else "") + f"`{program} --help` lists every setting"


def _flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _nest(flat: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *groups, last = name.split(".")
        target = nested
        for group in groups:
            target = target.setdefault(group, {})
        target[last] = value
    return nested
