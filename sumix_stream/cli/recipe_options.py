"""Dotted options of a recipe (`--train.max_steps 100`): their list for the help, and reading them."""

import argparse
import difflib

from sumix_stream.config import PRESETS, RecipeConfig
from sumix_stream.config.keys import sections
from sumix_stream.config.reader import load_recipe


def parse(parser: argparse.ArgumentParser, settings: tuple[str, ...]) -> tuple[argparse.Namespace, RecipeConfig]:
    """Read the command line; the parser has `--config`, and options for some of train's `settings`.

    Dotted options set any other key; --help lists them. Ends the command at an unknown option, naming the nearest.
    """
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "any key of the recipe can be set, to a YAML value; default of keys that the recipe leaves out, and unit:\n"
        f"  --model.preset   {' | '.join(PRESETS)}\n{_describe()}"
    )
    args, unknown = parser.parse_known_args()
    overrides = _overrides(unknown, parser)
    for name in settings:
        if (value := getattr(args, name)) is not None:
            overrides[f"train.{name}"] = "null" if value == "unlimited" else value
    return args, load_recipe(args.config, overrides)


def _describe() -> str:
    """Every key with its default and, from the comments of the configuration, its unit."""
    keys = (key for section in sections() for key in section.keys)
    return "\n".join(f"  --{key.name} {key.default}   {key.meaning}".rstrip() for key in keys)


def _overrides(unknown: list[str], parser: argparse.ArgumentParser) -> dict[str, str]:
    """The options that argparse did not know as {"train.max_steps": "100"}."""
    result = {}
    rest = list(unknown)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not (name.startswith("--") and "." in name):
            near = difflib.get_close_matches(name, [s for action in parser._actions for s in action.option_strings], 1)
            parser.error(f"unknown option {name}" + (f"; did you mean {near[0]}?" if near else ""))
        if not equals:
            if not rest:
                parser.error(f"{name} needs a value")
            value = rest.pop(0)
        result[name[2:]] = value
    return result
