"""An application of Jupyter whose settings come from environment, configuration file and command line, in this order.

It records the source of each value, and refuses to start with an unknown or invalid setting.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jupyter_core.application import JupyterApp, base_aliases, base_flags
from traitlets import Bool
from traitlets.config import Config

from gateway.core.errors import ConfigurationError, NotReady
from gateway.process.configuration import (
    CommandLine,
    ConfigurationFile,
    JsonConfigurationFile,
    check_file,
    drop_invalid,
    drop_unknown,
    file_error,
    from_environment,
    settings_text,
)

#: Exit status of a start that is refused because of its settings; argparse uses the same. A service manager does not
#: try again after it.
EXIT_CONFIGURATION = 2

#: Of a start that may succeed later with the same settings.
EXIT_NOT_READY = 1

# traitlets shows each class of settings in help and configuration files; a mixin is not one
if TYPE_CHECKING:
    _Base = JupyterApp
else:
    _Base = object


class ConfiguredApp(_Base):
    """Mixin of a `JupyterApp`; each trait of the class is a setting, with its environment variable as `env`.

    Attributes
    ----------
    sources : dict of str to str
        Where each setting that has no default value comes from.
    """

    python_config_loader_class = ConfigurationFile
    json_config_loader_class = JsonConfigurationFile

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sources: dict[str, str] = {}
        self._problems: list[str] = []

    def _create_loader(self, argv: Any, aliases: Any, flags: Any, classes: Any) -> CommandLine:
        loader = CommandLine(argv, aliases, flags, classes=classes, log=self.log, subcommands=self.subcommands)
        loader.check = lambda config: self._check(config, "the command line")
        return loader

    def load_config_file(self, suppress_errors: bool = True) -> None:  # type: ignore[override]
        """Load settings from the environment, then from the configuration file; the command line overrides both.

        Raises
        ------
        ConfigurationError
            A value of any source is not valid, or the file that ``--config`` names does not exist; the text names all
            errors.
        """
        if self.extra_args:
            raise ConfigurationError(f"unexpected argument {self.extra_args[0]!r}; see `transform-gateway commands`")
        section = type(self).__name__
        traits = self.class_own_traits(config=True)
        found, problems = from_environment(self, traits)
        self._problems += problems
        self.sources.update({name: f"environment, {traits[name].metadata['env']}" for name in found.get(section, {})})
        self.update_config(found)
        if "config_file" in self.cli_config.get(section, {}):
            check_file(self.config_file)
        super().load_config_file(suppress_errors=False)
        if self._problems:
            raise ConfigurationError(f"{'; '.join(self._problems)} (see transform-gateway --help-all)")
        self.sources.update(dict.fromkeys(self.cli_config.get(section, {}), "command line"))

    def _load_config_files(self, basefilename: str, *args: Any, **kwargs: Any) -> Iterator[Any]:  # type: ignore[override]
        """Yield the files of one name, as upstream does; each is checked before it has any effect."""
        kwargs["raise_config_file_errors"] = True
        section = type(self).__name__
        try:
            if self.config_file and basefilename != "jupyter_config":
                files = self._load_named_file()
            else:
                files = super()._load_config_files(basefilename, *args, **kwargs)
            for config, path in files:
                # other applications of Jupyter share this file
                ours = Config({section: config[section]}) if basefilename == "jupyter_config" else config
                self._check(ours, path)
                self.sources.update(dict.fromkeys(config.get(section, {}), path))
                yield config, path
        except ConfigurationError:
            raise
        except (Exception, SystemExit) as error:
            directory = kwargs.get("path")
            name = str(Path(directory, basefilename)) if isinstance(directory, str) else basefilename
            raise file_error(name, error) from None

    def _load_named_file(self) -> Iterator[tuple[Config, str]]:
        # upstream would also read the file of the same name with the other ending, and prefer the .json of the two
        path = Path(self.config_file)
        kind = self.json_config_loader_class if path.suffix == ".json" else self.python_config_loader_class
        loader = kind(path.name, path=str(path.parent), log=self.log)
        yield loader.load_config(), loader.full_filename

    def _check(self, config: Config, source: str) -> None:
        known = {kind.__name__: kind.class_trait_names(config=True) for kind in self._classes_with_config_traits()}
        self._problems += drop_unknown(config, known, source)
        self._problems += drop_invalid(config, self, self.class_traits(config=True), source)

    def effective(self, name: str) -> tuple[Any, str]:
        """Return the value of a setting and its source.

        Parameters
        ----------
        name : str
            Name of a trait.

        Returns
        -------
        value : object
        source : str
            ``default``, a file, a variable or the command line.
        """
        return getattr(self, name), self.sources.get(name, "default")

    def start_show_config(self) -> None:
        """Print every effective value with its source; secrets are masked."""
        traits = sorted(self.class_own_traits(config=True).items())
        rows = [(trait, *self.effective(name)) for name, trait in traits]
        sys.stdout.write(settings_text(rows, as_json=self.show_config_json))

    def write_default_config(self) -> None:
        """Write a configuration file that contains every setting, commented out.

        Raises
        ------
        ConfigurationError
            The file exists and cannot be asked about, or cannot be written.
        """
        try:
            super().write_default_config()
        except EOFError:
            raise ConfigurationError("the configuration file exists; --yes overwrites it") from None
        except OSError as error:
            text = (
                f"the configuration file {error.filename} cannot be written: {error.strerror}; name another by --config"
            )
            raise ConfigurationError(text) from None

    @classmethod
    def launch_instance(cls, argv: list[str] | None = None, **kwargs: Any) -> None:
        """Start the application; wrong settings end it with one line on stderr and exit status 2, `NotReady` with 1."""
        try:
            super().launch_instance(argv=argv, **kwargs)
        except ConfigurationError as error:
            sys.stderr.write(f"{cls.name}: {error}\n")
            sys.exit(EXIT_NOT_READY if isinstance(error, NotReady) else EXIT_CONFIGURATION)


def add_options(app: type[JupyterApp]) -> None:
    """Give each setting of an application its option on the command line.

    Parameters
    ----------
    app : type
        The class, complete with its traits.
    """
    app.aliases = {**base_aliases}
    app.flags = {**base_flags, "yes": base_flags["y"]}
    for name, trait in app.class_own_traits(config=True).items():
        option = name.replace("_", "-")
        app.aliases[option] = f"{app.__name__}.{name}"
        if isinstance(trait, Bool):  # the option without a value turns the setting on
            app.flags[option] = ({app.__name__: {name: True}}, trait.help)
