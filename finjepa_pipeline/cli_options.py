"""Options of the command line, generated from the config classes of Dagster's ops.

A field of a config class is an option of every command that runs its op: its name, type, default, bounds and help are those of
the field, and the class itself reads the values.
"""

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, Union, get_args, get_origin

import click
import dagster as dg
from click.core import ParameterSource
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from finjepa_model.config import TrainingConfig
from finjepa_model.planning.utility import parse_utility, utility_help
from finjepa_pipeline.automation import checked_overrides

Ops = dict[str, dict[str, Any]]

_SPELLED = {"overrides": "--set", "strategies": "--strategy"}  # fields of several values, given one by one
_SHORTCUTS = {  # fields of the training config that have an option besides --set training.KEY=VALUE
    "n_assets": "Assets in a sample.",
    "batch_size": "Decision dates in a batch.",
    "epochs": "Passes over the training block.",
    "seed": "Seed of weights and samples.",
}


@dataclass(frozen=True)
class OpConfig:
    """The config of an op whose fields are options of a command: `only` some of them, or all but `but`."""

    op: str
    config: type[dg.Config]
    only: tuple[str, ...] = ()
    but: tuple[str, ...] = ()

    def fields(self) -> dict[str, FieldInfo]:
        fields = self.config.model_fields.items()
        return {name: f for name, f in fields if name not in self.but and (not self.only or name in self.only)}

    def read(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """What was given of the fields, with the types of the class; a value that is none of its field is refused."""
        given = {name: options[name] for name in self.fields() if options[name] not in (None, (), [], {})}
        try:
            known = self.config(**given)
        except ValidationError as error:
            [first, *_] = error.errors()
            hint = _flag(str(first["loc"][0]))
            raise click.BadParameter(f"{first['input']!r}: {first['msg']}", param_hint=hint) from error
        return {name: getattr(known, name) for name in given}


def options_of(*configs: OpConfig) -> Callable[[Callable], Callable]:
    """A decorator: the fields of the configs become options; the command gets `ops`, the fields that were given, by op. A name
    that several configs have is one option, and goes to all of them; help and default are those of the first."""
    fields: dict[str, FieldInfo] = {}
    for config in configs:
        fields |= {name: field for name, field in config.fields().items() if name not in fields}

    def decorate(command: Callable) -> Callable:
        @wraps(command)
        def with_ops(*args: Any, **options: Any) -> Any:
            given = {name: options.pop(name) for name in fields}
            ops = {config.op: config.read(given) for config in configs}
            return command(*args, ops={op: config for op, config in ops.items() if config}, **options)

        decorated: Callable = with_ops
        for name in reversed(fields):
            decorated = _option(name, fields[name])(decorated)
        return decorated

    return decorate


def _flag(name: str) -> str:
    return _SPELLED.get(name, "--" + name.replace("_", "-"))


def _option(name: str, field: FieldInfo) -> Callable[[Callable], Callable]:
    kind, default = field.annotation, field.get_default(call_default_factory=True)
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(one for one in get_args(kind) if one is not type(None))
    flag, text = _flag(name), field.description or ""
    if get_origin(kind) in (dict, list):
        text = text.partition(", e.g. ")[0]  # as a launchpad takes it; here the metavar tells
    if kind is bool:
        flags = f"{flag}/--no-{flag[2:]}" if default else flag
        return click.option(flags, name, is_flag=True, default=None, help=text)
    if default not in (None, [], {}, ""):
        text += f"  [default: {','.join(map(str, default)) if isinstance(default, list) else default}]"
    if get_origin(kind) is dict:
        metavar = "KEY=VALUE,VALUE" if get_origin(get_args(kind)[1]) is list else "KEY=VALUE"
        return click.option(flag, name, multiple=True, metavar=metavar, callback=_read_pairs, help=text)
    if get_origin(kind) is list and name not in _SPELLED:
        metavar = f"{name.upper().removesuffix('S')},..."
        return click.option(flag, name, metavar=metavar, callback=_read_list, help=text)
    callback = _read_utility if name == "utility" else None
    metavar = {int: "INTEGER", float: "NUMBER"}.get(kind, "TEXT")
    return click.option(flag, name, metavar=metavar, multiple=name in _SPELLED, callback=callback, help=text)


def _read_list(context: click.Context, option: click.Parameter, text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",")]


def _read_pairs(context: click.Context, option: click.Parameter, texts: Sequence[str]) -> dict[str, Any]:
    pairs: dict[str, Any] = {}
    several = option.metavar != "KEY=VALUE"
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals or (several and not value):
            raise click.BadParameter(f"{text!r} is not {option.metavar}", context, option)
        if key in pairs:
            raise click.BadParameter(f"{key} is set twice", context, option)
        pairs[key] = value.split(",") if several else value
    return pairs


def _read_utility(context: click.Context, option: click.Parameter, text: str | None) -> str | None:
    """A utility that cannot be read is refused now, not after the prices have been read."""
    if text is None:
        return None
    if text.strip().lower() == "help":
        click.echo(utility_help())
        context.exit()
    return parse_utility(text).text


def training_options(*names: str) -> Callable[[Callable], Callable]:
    """A decorator: options of frequent fields of the training config, and --branch."""

    def decorate(command: Callable) -> Callable:
        for name in reversed(names):
            default = TrainingConfig.__dataclass_fields__[name].default
            text = f"{_SHORTCUTS[name]}  [default: {default}, or that of the preset]"
            command = click.option(f"--{name.replace('_', '-')}", name, type=int, help=text)(command)
        text = "jepa, or jepa,td: with the branch TD-JEPA, which is experimental.  [default: jepa]"
        return click.option("--branch", default="jepa", help=text)(command)

    return decorate


def add_training(model: dict[str, Any], branch: str, **shortcuts: int | None) -> dict[str, Any]:
    """The config of a training with what `training_options` were given; raises where an option cannot be read, says again what
    --set says, or does not fit."""
    branches = {name.strip() for name in branch.split(",")}
    if not {"jepa"} <= branches <= {"jepa", "td"}:
        raise click.BadParameter(f"{branch!r} is neither jepa nor jepa,td", param_hint="--branch")
    more = {f"training.{name}": str(value) for name, value in shortcuts.items() if value is not None}
    more |= {"td.enabled": "true"} if "td" in branches else {}
    overrides = model.get("overrides", {})
    for key in more.keys() & overrides.keys():
        raise click.BadParameter(f"{key} has an option of its own, which is given too", param_hint="--set")
    check_overrides(model | {"overrides": overrides | more})
    return model | {"overrides": overrides | more}


def check_overrides(model: Mapping[str, Any]) -> None:
    """A wrong key, value or point of a grid is refused now, not after the prices have been read."""
    preset, overrides = model.get("preset", "small"), model.get("overrides", {})
    checked_overrides(preset, overrides)
    for key, values in model.get("grid", {}).items():
        if key in overrides:
            raise click.BadParameter(f"{key} is set twice", param_hint="--grid")
        for value in values:
            checked_overrides(preset, {**overrides, key: value})


def refuse_given(without: str, *names: str) -> None:
    """Refuse options that the command line holds and that have no effect `without` another one, such as "without --folds"; raises
    click.UsageError with the name of the first."""
    context = click.get_current_context()
    for option in context.command.params:
        typed = context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
        if option.name in names and typed:
            raise click.UsageError(f"{option.opts[-1]} has no effect {without}")
