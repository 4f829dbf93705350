"""Plain values and YAML to configurations and back: strict, with errors that name the dotted key.

`load_recipe` reads one YAML file. Its paths are relative to the recipe's folder: the parent of `conf/` where the file
lies in a folder of that name (egs/mini/conf/tiny.yaml -> egs/mini/), else the file's own. Paths in overrides, which
people type at a prompt, are relative to the current directory. `model: {preset: tiny, encoder: {mixer: attention}}`
overlays a preset.
"""

import dataclasses
import difflib
import os
import re
import reprlib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from sumix_stream.config import PRESETS, ConfigError, ModelConfig, RecipeConfig, ValueNotAllowed
from sumix_stream.config.bounded_yaml import load_bounded, read_bounded

Config = TypeVar("Config")
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 200
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = 20
_REPR.maxlevel = 3


def from_dict(cls: type[Config], data: Mapping[str, Any] | None, section: str = "") -> Config:
    """A configuration from plain values, as YAML gives them; what is left out takes its default.

    Numbers become what their field is (2 -> 2.0, chunk_size 16 -> "16"), lists become tuples; nothing else is
    converted. Raises ConfigError naming the dotted key (`section` is its beginning) for an unknown key, a wrong type or
    an impossible value.
    """
    data = {} if data is None else data
    if not isinstance(data, Mapping):
        raise ConfigError(f"{section or 'the configuration'} must be a section of keys and values, got {_short(data)}")
    if cls is ModelConfig:
        data = _overlay_preset(data, section)
    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]
    for key in data:
        if key not in known:
            raise ConfigError(_unknown(key, section, known + (["preset"] if cls is ModelConfig else [])))
    values = {key: _convert(value, hints[key], _dotted(section, key)) for key, value in data.items()}
    try:
        return cls(**values)
    except ValueNotAllowed as error:
        raise ConfigError(f"{_dotted(section, error.key)} must be {error.allowed}, got {_short(error.value)}") from None


def model_of_checkpoint(data: Mapping[str, Any]) -> ModelConfig:
    """A model's configuration as its checkpoint holds it, of any release. Raises as `from_dict`.

    Cells had one layer before `encoder.mlp_layers` was there.
    """
    encoder = data.get("encoder") if isinstance(data, Mapping) else None
    if isinstance(encoder, Mapping) and "mlp_layers" not in encoder:
        data = {**data, "encoder": {**encoder, "mlp_layers": 1}}
    return from_dict(ModelConfig, data)


def to_dict(config: Any) -> dict[str, Any]:
    """Plain values for YAML: the inverse of `from_dict`."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, tuple) else value

    return plain(config)


def dump_yaml(config: Any, path: str | os.PathLike) -> None:
    """Writes a configuration so that `load_recipe` (for a recipe) or `from_dict` reads the same back."""
    Path(path).write_text(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True), encoding="utf-8")


def load_yaml(path: str | os.PathLike) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ConfigError naming the file, and the line where it is not YAML."""
    try:
        data = read_bounded(Path(path), _StrictLoader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file in UTF-8") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if data is not None and not isinstance(data, dict):
        raise ConfigError(f"{path}: must hold sections of keys and values, got {type(data).__name__}")
    return data or {}


def load_recipe(path: str | os.PathLike, overrides: Mapping[str, Any] | None = None) -> RecipeConfig:
    """The recipe in a YAML file, with dotted overrides such as {"train.max_steps": "100", "model.preset": "small"}.

    Strings among the overrides are read as YAML. Paths of the result are absolute: see the module's docstring for what
    they are relative to. Raises ConfigError naming the file or override, the key and the remedy.
    """
    path = Path(path)
    folder = path.absolute().parent
    folder = folder.parent if folder.name == "conf" else folder
    data = load_yaml(path)
    try:
        recipe = from_dict(RecipeConfig, data)  # the file must be right by itself, whatever the overrides hide
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if overrides:
        typed = _resolve_paths(_tree(overrides), RecipeConfig, Path.cwd())
        recipe = from_dict(RecipeConfig, _merge(data, typed))
    return from_dict(RecipeConfig, _resolve_paths(to_dict(recipe), RecipeConfig, folder))


def _short(value: Any) -> str:
    """A value for a message, whatever its size."""
    return _REPR.repr(value)


class _StrictLoader(yaml.SafeLoader):
    """YAML, but 1e-3 is a number (YAML 1.1 wants 1.0e-3) and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _dotted(section: str, key: str) -> str:
    return f"{section}.{key}" if section else str(key)


def _unknown(key: Any, section: str, known: list[str]) -> str:
    nearest = difflib.get_close_matches(str(key), known, n=1)
    where = f" in {section}" if section else ""
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"it has {', '.join(known)}"
    return f"unknown key {_short(key)}{where}; {hint}"


def _overlay_preset(data: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    if "preset" not in data:
        return data
    name, rest = data["preset"], {key: value for key, value in data.items() if key != "preset"}
    if name not in list(PRESETS):
        nearest = difflib.get_close_matches(str(name), PRESETS, n=1)
        hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
        raise ConfigError(f"{_dotted(section, 'preset')} must be one of {', '.join(PRESETS)}{hint}, got {_short(name)}")
    return _merge(to_dict(PRESETS[name]), rest)


def _merge(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in overlay.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _tree(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys to nested sections, strings read as YAML."""
    tree: dict[str, Any] = {}
    for key, value in overrides.items():
        if isinstance(value, str):
            try:
                value = load_bounded(value, _StrictLoader)
            except yaml.YAMLError as error:
                raise ConfigError(
                    f"{key}: not a YAML value: {_short(value)} ({' '.join(str(error).split())})"
                ) from None
        for part in reversed(key.split(".")):
            value = {part: value}
        tree = _merge(tree, value)
    return tree


def _section_class(hint: Any) -> type | None:
    """The dataclass of a field that is a section, or a section or nothing."""
    return next((option for option in _options(hint) if dataclasses.is_dataclass(option)), None)


def _options(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _resolve_paths(data: dict[str, Any], cls: type, folder: Path) -> dict[str, Any]:
    """Plain values with the paths among them made absolute; what is not of the right type is left for `from_dict`."""
    hints = typing.get_type_hints(cls)
    is_path = {f.name: "path" in f.metadata for f in dataclasses.fields(cls)}

    def absolute(value: Any) -> Any:
        return os.path.normpath(folder / Path(value).expanduser()) if isinstance(value, str) and value else value

    def resolve(key: str, value: Any) -> Any:
        section = _section_class(hints.get(key))
        if section is not None and isinstance(value, dict):
            return _resolve_paths(value, section, folder)
        if not is_path.get(key):
            return value
        if isinstance(value, dict):
            return {name: absolute(item) for name, item in value.items()}
        return [resolve_item(key, item) for item in value] if isinstance(value, list) else absolute(value)

    def resolve_item(key: str, item: Any) -> Any:
        section = _section_class(typing.get_args(hints[key])[0]) if isinstance(item, dict) else None
        return absolute(item) if section is None else _resolve_paths(item, section, folder)

    return {key: resolve(key, value) for key, value in data.items()}


def _has_keys(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint) or typing.get_origin(hint) is dict


def _convert(value: Any, hint: Any, key: str) -> Any:
    options = _options(hint)
    if value is None and types.NoneType in options:
        return None
    kinds = [option for option in options if option is not types.NoneType]
    if len(kinds) > 1:  # a plain form, and one of keys and values
        keyed = isinstance(value, Mapping) or dataclasses.is_dataclass(value)
        kinds = [option for option in kinds if _has_keys(option) == keyed]
    (kind,) = kinds
    if dataclasses.is_dataclass(kind):
        return value if isinstance(value, kind) else from_dict(kind, value, key)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{key} must be a list, got {_short(value)}")
        return tuple(_convert(item, typing.get_args(kind)[0], f"{key}[{i}]") for i, item in enumerate(value))
    if typing.get_origin(kind) is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key} must be a mapping, got {value!r}")
        return {str(name): _convert(item, typing.get_args(kind)[1], f"{key}.{name}") for name, item in value.items()}
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if kind is float and is_int:
        return float(value)
    if kind is str and is_int:
        return str(value)
    if type(value) is not kind:
        names = {int: "an integer", float: "a number", str: "text", bool: "true or false"}
        optional = " or null" if types.NoneType in options else ""
        raise ConfigError(f"{key} must be {names[kind]}{optional}, got {_short(value)}")
    return value
