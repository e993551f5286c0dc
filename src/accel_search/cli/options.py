"""Declare each option once, as a field of a dataclass; command line and TOML keys follow."""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from accel_search.cli.completion import Words, add_completion
from accel_search.errors import ConfigurationError, first_line

MAX_WHOLE = 2**31 - 1
"""Largest whole number that is taken where an option has no limit of its own."""
UNKNOWN: Any = "unknown"
"""What an option affects where its declaration gives nothing."""
Affects = Literal["timing", "score", "search"]
"""Part of a result: what was measured, what was scored, or what was searched and how far."""


def declare(
    default: Any,
    help_text: str,
    *,
    parse: Callable[[str], Any] = str,
    metavar: str | None = None,
    aliases: tuple[str, ...] = (),
    alone: Any = None,
    repeat: bool = False,
    words: Words | None = None,
    only: bool = False,
    least: float | None = None,
    most: float | None = None,
    multiple: int | None = None,
    expected: str | None = None,
    affects: Affects | None = UNKNOWN,
    sweep: bool = True,
) -> Any:
    """Declare an option.

    Args:
        default: Its value where it is not given.
        help_text: One line.
        parse: Makes a value of its text, or raises ValueError with what is allowed.
        metavar: Stands for the value in the help.
        aliases: Other names that are accepted.
        alone: Its value where it is given without one; None requires a value.
        repeat: Whether it may be given several times; `parse` makes a tuple of each text, and its
            value is all of them.
        words: Values that a shell completes it with; others may be allowed too.
        only: Whether no value but `words`, and the default, is allowed.
        least: Least number that is allowed; None if it takes no number.
        most: Greatest number that is allowed.
        multiple: What a whole number has to be a multiple of.
        expected: How a message names the numbers that are allowed.
        affects: Part of a stored result that depends on the option; None if nothing does. Every
            option of `Settings` gives it.
        sweep: Whether a sweep passes it on to its searches.
    """
    metadata = dict(locals())
    return field(default=metadata.pop("default"), metadata=metadata | {"help": help_text})


MAX_SECONDS = 10_000 * 86_400.0
"""Longest duration that is taken; beyond any use, and short enough for any file to hold."""
MAX_NAME_BYTES = 255
"""Longest part of a path that a file system takes."""
MAX_PATH_BYTES = 4095


def check_text(name: str, text: str, *, is_path: bool = True) -> None:
    """Refuse a text that can be neither a name nor a path, as later calls would.

    Args:
        name: The option's.
        text: What it was given.
        is_path: Whether it is, or may be, a path.

    Raises:
        ConfigurationError: It is blank, cannot be written as UTF-8, holds a control character, or
            is longer than a path can be.
    """
    shown = text if len(text) <= 60 else f"{text[:60]}…"
    if not text.strip():
        refuse(name, text, "a name or a path; leave the option out for its default")
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        refuse(name, shown, "text in UTF-8")
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        refuse(name, shown, "text without control characters")
    longest = max(len(part) for part in encoded.split(b"/"))
    if is_path and (longest > MAX_NAME_BYTES or len(encoded) > MAX_PATH_BYTES):
        refuse(
            name,
            shown,
            f"a path of at most {MAX_PATH_BYTES} bytes, each part of at most {MAX_NAME_BYTES}",
        )


def refuse(name: str, value: Any, allowed: str) -> NoReturn:
    """Raise the error that names an option, what it was given and what is allowed."""
    shown = repr(value)
    shown = shown if len(shown) <= 200 else f"{shown[:200]}…"
    raise ConfigurationError(f"--{name} {shown}: expected {allowed}")


def is_real(option: Field[Any]) -> bool:
    """Return whether an option is a number that may have a fraction."""
    metadata = option.metadata
    return metadata.get("least") is not None and metadata["parse"] is not int


def check_value(option: Field[Any], value: Any) -> None:
    """Check a number against an option's range, and a name against its names.

    Raises:
        ConfigurationError: It is out of range, or not one of the names.
    """
    allowed = option.metadata
    if value is None or not allowed:
        return
    if allowed["only"] and value not in allowed["words"]:
        refuse(option.name, value, f"one of {', '.join(allowed['words'])}")
    if allowed["least"] is None:
        return
    least, most, multiple = allowed["least"], allowed["most"] or MAX_WHOLE, allowed["multiple"]
    kinds = (int, float) if is_real(option) else (int,)
    # Written so that NaN is refused too: every comparison with it is false.
    if type(value) not in kinds or not least <= value <= most or (multiple and value % multiple):
        refuse(option.name, value, allowed["expected"] or f"a whole number, {least} or more")


def parse_seconds(text: str) -> float:
    """Parse a duration: `90`, `90s`, `30m`, `2h`, `1h30m`.

    Raises:
        ValueError: It is not written like one of these, or is zero.
    """
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text)
    if not match or not any(match.groups()):
        raise ValueError("a duration is seconds or like 90s, 30m, 1h30m")
    hours, minutes, seconds = (float(group or 0) for group in match.groups())
    total = hours * 3600 + minutes * 60 + seconds
    if not 0 < total <= MAX_SECONDS:
        raise ValueError("a duration is more than 0 seconds and at most 10,000 days")
    return total


def parse_limit(text: str) -> float:
    """Parse a duration, or 0 for none.

    Raises:
        ValueError: It is neither.
    """
    if re.fullmatch(r"0+(\.0*)?s?", text):
        return 0.0
    try:
        return parse_seconds(text)
    except ValueError:
        raise ValueError("a duration, e.g. 90s or 30m, or 0 for none") from None


class _Parser(argparse.ArgumentParser):
    """Report a wrong command line as a `ConfigurationError`, in one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{message}; see {self.prog} --help")


def build_parser(
    prog: str,
    description: str,
    version: str,
    options: Sequence[Field[Any]],
    groups: Mapping[str, str],
    words: Mapping[str, Words] | None = None,
) -> argparse.ArgumentParser:
    """Return a command line made from the fields of a dataclass.

    Args:
        prog: Name of the program.
        description: What it does.
        version: Printed by `--version`.
        options: Fields that were declared with `declare`; others are skipped.
        groups: First option of each group in the help -> title of the group.
        words: Option -> values that a shell completes, beside those of the declarations.
    """
    parser = _Parser(
        prog=prog,
        description=description,
        allow_abbrev=False,
        usage="%(prog)s [OPTION ...]",
        epilog="Every option also works with hyphens in place of underscores.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=28, width=100),
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version}")
    known = {option.name: option.metadata.get("words") for option in options} | dict(words or {})
    add_completion(parser, {name: values for name, values in known.items() if values is not None})
    parser.add_argument("--config", metavar="FILE", help="TOML file of these options; flags win")
    group: argparse._ArgumentGroup | None = None
    for option in options:
        if not option.metadata:
            continue
        if option.name in groups or group is None:
            group = parser.add_argument_group(groups[option.name])
        _add_option(group, f"--{option.name}", option, _help_line(option))
        # Understood but not shown: the usual spelling with hyphens, and older names.
        for name in (option.name, *option.metadata["aliases"]):
            for flag in dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")):
                if flag != f"--{option.name}":
                    _add_option(group, flag, option, argparse.SUPPRESS)
    return parser


def _help_line(option: Field[Any]) -> str:
    """Return an option's help with its default, as argparse formats it."""
    text: str = option.metadata["help"].replace("%", "%%")
    if option.default in (None, MISSING, ()) or option.metadata["parse"] is bool:
        return text
    shown = option.default
    if isinstance(shown, tuple):
        shown = ",".join(str(one) for one in shown)
    return f"{text} [{shown}]"


def _add_option(
    group: argparse._ArgumentGroup, flag: str, option: Field[Any], help_text: str
) -> None:
    parse = option.metadata["parse"]
    if parse is bool:
        group.add_argument(flag, dest=option.name, action="store_true", help=help_text)
        return
    alone = option.metadata["alone"]
    group.add_argument(
        flag,
        dest=option.name,
        type=_typed(option.name, parse),
        **({} if alone is None else {"nargs": "?", "const": alone}),
        action="extend" if option.metadata["repeat"] else "store",
        metavar=option.metadata["metavar"] or {int: "N", float: "X"}.get(parse, "NAME"),
        help=help_text,
    )


def _typed(name: str, parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Wrap a parser of text so that what it refuses names the option and what is allowed."""
    kinds = {int: "a whole number", float: "a number"}

    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            refuse(name, text, kinds.get(parse, str(error)))  # type: ignore[call-overload]

    return convert


def given_options(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    options: Sequence[Field[Any]],
) -> dict[str, Any]:
    """Return the options of a command line and of the TOML file that it names; flags win.

    Args:
        parser: From `build_parser`.
        arguments: None takes the process's own.
        options: Fields that the file may set.

    Raises:
        ConfigurationError: An option or a TOML entry is unknown, or cannot be parsed.
    """
    given = vars(parser.parse_args(arguments))
    config = given.pop("config", None)
    return (read_config(Path(config), options, parser.prog) if config else {}) | given


def read_config(path: Path, options: Sequence[Field[Any]], program: str) -> dict[str, Any]:
    """Read a TOML file of options; `[space.NAME]` tables replace parameter values.

    Args:
        path: The file.
        options: Fields that it may set.
        program: Whose options they are, for messages.

    Raises:
        ConfigurationError: The file cannot be read or parsed, or holds an unknown key.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    # ValueError: a text that is not UTF-8 or not TOML, or a number of thousands of digits.
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"--config {path}: cannot be read as TOML: {first_line(error)}"
        ) from error
    known = {option.name: option for option in options}
    names = {
        alias: option.name
        for option in known.values()
        for alias in option.metadata.get("aliases", ())
    }
    result: dict[str, Any] = {}
    for name, value in content.items():
        spelled = name.replace("-", "_")
        key = names.get(spelled, spelled)
        if key not in known:
            raise ConfigurationError(
                f"--config {path}: unknown option {name!r}; {program} --help lists them"
            )
        given = f"--config {path}: {name}"
        result[key] = _space(path, value) if key == "space" else value_of(known[key], value, given)
    return result


def value_of(option: Field[Any], value: Any, given: str) -> Any:
    """Return a value of TOML or Python as an option wants it: of its type, or parsed as text is.

    Args:
        option: The option.
        value: What it was given.
        given: Where it stands, for messages.

    Raises:
        ConfigurationError: It is of another type, or cannot be parsed.
    """
    parse = option.metadata["parse"]
    kinds: dict[Any, Any] = {int: int, float: (int, float), bool: bool, str: str, str.upper: str}
    wrong = ConfigurationError(f"{given} = {value!r} has the wrong type")
    if parse not in kinds:
        # These parse text on the command line; a file may also hold their lists and numbers.
        text = str(value) if type(value) in (int, float) else value
        if not isinstance(text, str | list):
            raise wrong
        try:
            return _typed(option.name, parse)(text)  # type: ignore[arg-type]
        except (TypeError, AttributeError) as error:
            raise wrong from error  # A list where only text is allowed, or a list of lists.
    if not isinstance(value, kinds[parse]) or (isinstance(value, bool) and parse is not bool):
        raise wrong
    return parse(value) if parse is str.upper else value


def _space(path: Path, tables: Any) -> dict[str, dict[str, tuple[int | float, ...]]]:
    """Return `[space.NAME]` tables as accelerator -> parameter -> values."""
    result: dict[str, dict[str, tuple[int | float, ...]]] = {}
    for name, parameters in tables.items() if isinstance(tables, dict) else [("", None)]:
        if not isinstance(parameters, dict) or not all(
            isinstance(values, list) for values in parameters.values()
        ):
            raise ConfigurationError(
                f"--config {path}: [space.{name}] holds `parameter = [values]` lines"
            )
        result[name] = {key: tuple(values) for key, values in parameters.items()}
    return result
