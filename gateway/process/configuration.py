"""Read settings from environment, configuration file and command line, and refuse unknown and invalid ones.

traitlets warns of unknown names and of files with errors, and goes on with the defaults, which have no token and no
required tier. Here each of them is a problem: the entry is dropped, and the start is refused once all sources were
read, with one message about all of them.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from traitlets import Bool, Enum, Float, HasTraits, Integer, List, TraitError, TraitType, Unicode
from traitlets.config import Config
from traitlets.config.loader import (
    ArgumentError,
    ConfigFileNotFound,
    DeferredConfig,
    JSONFileConfigLoader,
    KVArgParseConfigLoader,
    LazyConfigValue,
    PyFileConfigLoader,
)

from gateway.core.errors import ConfigurationError
from kernel_spec.quantity_traits import Quantity

Traits = Mapping[str, TraitType[Any, Any]]

_WORDS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


class CommandLine(KVArgParseConfigLoader):
    """The loader of the command line; unknown options are errors of one line.

    Attributes
    ----------
    check : callable
        Called with the settings of the command line before they have any effect.
    """

    check: Callable[[Config], None]

    def load_config(self, *args: Any, **kwargs: Any) -> Config:
        """Return the settings of the command line.

        Raises
        ------
        ConfigurationError
            An option is unknown.
        """
        try:
            config = super().load_config(*args, **kwargs)
        except ArgumentError as error:
            raise ConfigurationError(f"the command line is not valid: {error}; see --help") from None
        self.check(config)
        return config

    def _create_parser(self) -> None:
        super()._create_parser()
        self.parser.error = _refuse_arguments  # type: ignore[method-assign]

    def _parse_args(self, args: Any) -> Any:
        known = {option for option in self.parser._option_string_actions if option.startswith("-")}
        names = [argument.partition("=")[0] for argument in args]
        unknown = [
            f"unknown option {name}{suggestion(name, known)}"
            for name in names
            if name.startswith("-") and name.strip("-") and "." not in name and name not in known
        ]
        if unknown:
            raise ConfigurationError(f"{'; '.join(unknown)} (see transform-gateway --help-all)")
        return super()._parse_args(args)


class JsonConfigurationFile(JSONFileConfigLoader):
    """The loader of a JSON file. Keys and values that upstream would silently drop are errors."""

    def _read_file_as_dict(self) -> dict[str, Any]:
        def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            members = dict(pairs)
            if len(members) < len(pairs):
                raise ConfigurationError(f"{self.full_filename}: a key is there twice in one object")
            return members

        read = json.loads(Path(self.full_filename).read_bytes(), object_pairs_hook=unique)
        if not isinstance(read, dict):
            raise ConfigurationError(f"{self.full_filename}: the file is no JSON object")
        return read


class ConfigurationFile(PyFileConfigLoader):
    """The loader of a Python file. Settings that upstream would silently drop, such as a token, are errors."""

    def load_subconfig(self, fname: str, path: str | None = None) -> None:
        """Load another file into this one's settings.

        Raises
        ------
        ConfigurationError
            There is no such file.
        """
        loader = type(self)(fname, self.path if path is None else path)
        try:
            self.config.merge(loader.load_config())
        except ConfigFileNotFound:
            # not this error itself, after which upstream looks for another file
            raise ConfigurationError(f"{self.full_filename}: there is no file {fname} (load_subconfig)") from None

    def _read_file_as_dict(self) -> None:
        path = Path(self.full_filename)
        names = {
            "c": self.config,
            "get_config": lambda: self.config,
            "load_subconfig": self.load_subconfig,
            "__file__": str(path),
        }
        exec(compile(path.read_bytes(), path, "exec"), names)  # noqa: S102 - the operator's file
        if names.get("c") is not self.config:
            raise ConfigurationError(f"{path}: the file gives c another value; set attributes of the c that is there")


def _refuse_arguments(message: str) -> Any:
    raise ConfigurationError(f"the command line is not valid: {message}; see --help")


def suggestion(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return ``; did you mean ...?`` for a misspelt name, or an empty text."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {prefix}{close[0]}?" if close else ""


def from_environment(owner: HasTraits, traits: Traits) -> tuple[Config, list[str]]:
    """Return the settings that environment variables have, and a sentence about each value that is not valid.

    Parameters
    ----------
    owner : HasTraits
        The application.
    traits : mapping of str to TraitType
        Its traits; the metadata ``env`` is the variable's name.

    Returns
    -------
    settings : Config
    problems : list of str
    """
    found = Config()
    problems = []
    for name, trait in traits.items():
        variable = trait.metadata.get("env", "")
        text = os.environ.get(variable)
        if text is None or (text == "" and not isinstance(trait, Unicode)):
            continue
        try:
            value = _value_of(trait, text)
            trait._validate(owner, value)
        except (ValueError, TraitError) as error:
            problems.append(f"environment variable {variable}={text!r} is not valid: {_reason(trait, error)}")
        else:
            found[type(owner).__name__][name] = value
    return found, problems


def drop_unknown(config: Config, known: Mapping[str, Iterable[str]], source: str) -> list[str]:
    """Remove sections and settings that no class has, and return a sentence about each.

    Parameters
    ----------
    config : Config
        Settings of one source.
    known : mapping of str to iterable of str
        Names of the settings of each class.
    source : str
        A file, or ``the command line``.

    Returns
    -------
    list of str
    """
    problems = []
    for section, values in tuple(config.items()):
        if section not in known:
            problems.append(f"{source}: unknown setting {section}{suggestion(section, known)}")
            del config[section]
            continue
        names = list(known[section])
        for name in [name for name in values if name not in names]:
            hint = suggestion(name, names, f"{section}.")
            problems.append(f"{source}: unknown setting {section}.{name}{hint}")
            del values[name]
    return problems


def drop_invalid(config: Config, owner: HasTraits, traits: Traits, source: str) -> list[str]:
    """Remove values of one source that do not fit, and return a sentence about each."""
    problems = []
    # a section may have the name of a base class, such as Application
    for values in [config[kind.__name__] for kind in type(owner).mro() if kind.__name__ in config]:
        for name, value in tuple(values.items()):
            trait = traits.get(name)
            if trait is None or isinstance(value, LazyConfigValue):
                continue
            try:
                trait._validate(owner, value.get_value(trait) if isinstance(value, DeferredConfig) else value)
            except (ValueError, TraitError) as error:
                problems.append(f"{source}: {name} is not valid: {_reason(trait, error)}")
                del values[name]
    return problems


def file_error(basename: str, error: Exception | SystemExit) -> ConfigurationError:
    """Return the error for a configuration file that cannot be read or run, with its line where that is known.

    Parameters
    ----------
    basename : str
        Name of the file without its ending.
    error : Exception or SystemExit
        Raised by the file, or while it was read.
    """
    path, line = f"{basename}.json", getattr(error, "lineno", None)
    if isinstance(error, SyntaxError | OSError) and error.filename:
        path = error.filename
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if Path(code.co_filename).name == f"{Path(basename).name}.py":
            path, line = code.co_filename, trace.tb_lineno
        trace = trace.tb_next
    where = f"{path}, line {line}," if line else path
    text = error.msg if isinstance(error, SyntaxError) else str(error).partition("\n")[0]
    return ConfigurationError(f"the configuration file {where} is not valid: {type(error).__name__}: {text}")


def check_file(path: str) -> None:
    """Refuse a file that was named on the command line and does not exist.

    Raises
    ------
    ConfigurationError
        The name is empty, there is no such file, or its name has another ending than ``.py`` or ``.json``.
    """
    if not path.strip():
        raise ConfigurationError("--config is empty; name a file, or leave it out")
    if Path(path).suffix not in (".py", ".json"):
        raise ConfigurationError(f"the configuration file {path} must end in .py or .json")
    if not Path(path).is_file():
        raise ConfigurationError(f"there is no configuration file {path} (--config)")


def _value_of(trait: TraitType[Any, Any], text: str) -> Any:
    if isinstance(trait, Bool):
        if text.strip().lower() not in _WORDS:
            raise ValueError("expected true or false")
        return _WORDS[text.strip().lower()]
    if isinstance(trait, List):
        parts = [part.strip() for part in text.split(trait.metadata.get("separator", os.pathsep))]
        if not any(parts):  # variables that were to be filled in; an empty list of hosts would mean any host
            raise ValueError("it names nothing; leave it out, or set it to nothing at all")
        return [part for part in parts if part]
    if isinstance(trait, Integer | Float):
        return trait.from_string(text)
    return text


def _reason(trait: TraitType[Any, Any], error: Exception) -> str:
    if trait.metadata.get("secret"):  # the error quotes the value
        return "expected a text"
    if isinstance(trait, Quantity):
        return trait.expected
    if isinstance(trait, Integer | Float):
        bounds = [
            f"{word} {bound}" for word, bound in (("at least", trait.min), ("at most", trait.max)) if bound is not None
        ]
        kind = "an integer" if isinstance(trait, Integer) else "a number"
        return f"expected {kind}{' of ' if bounds else ''}{' and '.join(bounds)}"
    if isinstance(trait, Enum):
        return f"expected one of {', '.join(str(value) for value in trait.values or () if value)}"
    return str(error)


def settings_text(rows: Sequence[tuple[TraitType[Any, Any], Any, str]], *, as_json: bool) -> str:
    """Return settings as a text, with secrets masked.

    Parameters
    ----------
    rows : sequence of tuple
        Trait, value and source of each setting.
    as_json : bool
        Whether the text is JSON, and not one line for each setting.
    """
    shown = []
    for trait, value, source in rows:
        shown.append((trait, "***" if trait.metadata.get("secret") and value else value, source))
    if as_json:
        values = [{"name": trait.name, "value": value, "source": source} for trait, value, source in shown]
        return json.dumps(values, indent=2) + "\n"
    lines = []
    for trait, value, source in shown:
        text = trait.text_of(value) if isinstance(trait, Quantity) else repr(value)
        lines.append(f"{trait.name} = {text}  ({source})\n")
    return "".join(lines)
