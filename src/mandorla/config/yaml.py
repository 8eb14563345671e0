"""Text of the YAML 1.2 core schema: `1e-4` is a number, `no` is a word, a repeated key is an error.

Every value that is read has the line it stands on, so that a mistake can be said with its place.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from mandorla.errors import MandorlaError

Keys = tuple[str | int, ...]  # the path to a value


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[Keys, int]]:
    """Return the mapping in the YAML file at `path`, and the line (from 1) of each value by its path of keys.

    Keys are strings. Raises `MandorlaError` where the file is missing, is not YAML, repeats a key, or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise MandorlaError(f"{path}: no such file; mend the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise MandorlaError(f"{path}: cannot be read as UTF-8 text ({error}); save it as that") from error
    lines: dict[Keys, int] = {}
    tree = parse_yaml(text, str(path), lines)
    if tree is None:
        return {}, lines
    if not isinstance(tree, dict):
        raise MandorlaError(f"{path}: expected `key: value` lines at the top, got {show(tree)}")
    return tree, lines


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict = {}

    def ignore_aliases(self, data: Any) -> bool:
        return True


_SCALARS = {  # of the YAML 1.2 core schema: tag -> (first characters, pattern, value)
    "null": ("~nN", r"~|null|Null|NULL|", lambda text: None),
    "bool": ("tTfF", r"true|True|TRUE|false|False|FALSE", lambda text: text.lower() == "true"),
    "int": ("-+0123456789", r"[-+]?[0-9]+", int),
    "float": (
        "-+.0123456789",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        lambda text: float(re.sub(r"\.(?=[in])", "", text.lower())),
    ),
    "str": ("", r"(?!)", str),  # what no other pattern matches
}
_TAG = "tag:yaml.org,2002:"
_MOST_VALUES = 10_000  # in one file
for _name, (_first, _pattern, _) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), [*_first, ""])
_Dumper.add_representer(  # only between double quotes does PyYAML escape these line breaks
    str,
    lambda dumper, text: dumper.represent_scalar(
        _TAG + "str", text, style='"' if {"\x85", "\u2028", "\u2029"} & set(text) else None
    ),
)
_Dumper.add_representer(
    list,
    lambda dumper, value: dumper.represent_sequence(
        _TAG + "seq", value, flow_style=not any(isinstance(item, (dict, list)) for item in value)
    ),
)


def yaml_text(value: Any, inline: bool = False) -> str:
    """Return a plain value as YAML, on one line if it is to be `inline`."""
    text = yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=float("inf") if inline else 110,
        default_flow_style=inline,
    )
    return text.removesuffix("\n").removesuffix("\n...") if inline else text


def parse_yaml(text: str, place: str, lines: dict[Keys, int]) -> Any:
    """Return the value of a YAML text; write the line of each value into `lines`, by its path of keys."""

    def build(node: yaml.Node, keys: Keys) -> Any:
        if len(lines) > _MOST_VALUES:
            raise MandorlaError(
                f"{place}: more than {_MOST_VALUES} values; does an alias repeat others again and again?"
            )
        if isinstance(node, yaml.SequenceNode):
            lines.update({(*keys, index): item.start_mark.line + 1 for index, item in enumerate(node.value)})
            return [build(item, (*keys, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            tree: dict[str, Any] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                if not isinstance(key, yaml.ScalarNode):
                    raise MandorlaError(f"{place}:{line}: a key is one word, not a list or a mapping")
                where = (*keys, key.value)
                if where[-1] in tree:
                    raise MandorlaError(f"{place}:{line}: `{dotted(where)}` is given twice; remove one")
                lines[where] = line
                tree[where[-1]] = build(value, where)
            return tree
        tag = node.tag.removeprefix(_TAG)
        if tag not in _SCALARS:
            raise MandorlaError(
                f"{place}:{node.start_mark.line + 1}: the YAML tag {node.tag} is not allowed here; remove it"
            )
        return _SCALARS[tag][2](node.value)

    try:
        node = yaml.compose(text, _Loader)
        return None if node is None else build(node, ())
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise MandorlaError(f"{place}{line}: not valid YAML: {error.problem}; mend it") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise MandorlaError(f"{place}: not valid YAML: {' '.join(str(error).split())}; mend it") from error


def dotted(keys: Keys) -> str:
    """Return a path of keys as people write it: `data.size[0]`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".")


def show(value: Any) -> str:
    """Return a value for an error, in short."""
    text = yaml_text(value, inline=True)
    return text if len(text) <= 60 else text[:57] + "..."
