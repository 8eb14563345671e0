"""Settings: merging, strictness, messages, round trip, description."""

import json
import math
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Discriminator, Field, PositiveInt, Tag, field_validator

from mandorla.config import Relative, Settings, describe, dump, load_settings, read_yaml
from mandorla.errors import MandorlaError


class Digits(Settings):
    """Digits over photographs."""

    kind: Literal["digits"] = "digits"
    size: int = 24
    """Side in pixels."""


class Folders(Settings):
    """One folder per modality."""

    kind: Literal["folders"] = "folders"
    folders: dict[str, Path]
    """Modality name -> folder."""
    size: tuple[int, int] = (64, 64)
    key: str | None = None


class Custom(Settings):
    """A source of the user's own."""

    kind: str
    options: dict[str, int] = {}


def _tag(value: object) -> str | None:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return "digits" if kind == "digits" else kind and "custom"


Open = Annotated[Annotated[Digits, Tag("digits")] | Annotated[Custom, Tag("custom")], Discriminator(_tag)]
Data = Annotated[Digits | Folders, Field(discriminator="kind")]


class Network(Settings):
    """A network."""

    channels: tuple[PositiveInt, ...] = (16, 32)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability of setting a unit
    to zero."""
    weights: dict[str, float] = {"kl": 1.0, "swap": 0.5}


class Training(Settings):
    """How one stage is trained."""

    learning_rate: float = 1e-3
    network: Network = Network(dropout=0.25)
    networks: dict[str, Network] = {}
    device: Literal["auto", "cpu", "cuda"] = "auto"
    clip: float | None = 1.0

    @field_validator("learning_rate")
    @classmethod
    def _positive(cls, value: float) -> float:
        if value <= 0:
            raise ValueError("must be positive")
        return value


class Root(Settings):
    run: str = "runs/toy"
    data: Data
    vae: Training = Training()
    extra: Data | None = None
    source: Open = Digits(size=12)


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return write


DIGITS = "data:\n  kind: digits\n"
FOLDERS = "data:\n  kind: folders\n  folders: {a: x, b: y}\n  size: [3, 4]\n"


def test_defaults_then_yaml_then_overrides(write):
    path = write(DIGITS + "vae:\n  learning_rate: 1e-4\n  network:\n    channels: [8]\n")
    settings = load_settings(Root, path=path, overrides=["vae.network.channels=[4, 2]", "run=runs/other"])
    assert settings.vae.learning_rate == 1e-4
    assert settings.vae.network.channels == (4, 2)
    assert settings.vae.network.dropout == 0.25, "the default of the outer class survives a partly given block"
    assert settings.run == "runs/other"


def test_an_override_inside_a_union_keeps_the_kind(write):
    settings = load_settings(Root, path=write(FOLDERS), overrides=["data.size=[5, 6]", "data.folders.c=z"])
    assert settings.data == Folders(folders={"a": Path("x"), "b": Path("y"), "c": Path("z")}, size=(5, 6))


@pytest.mark.parametrize("overrides", [["data.kind=digits", "data.size=9"], ["data.size=9", "data.kind=digits"]])
def test_another_kind_drops_the_keys_of_the_old_one(write, overrides):
    assert load_settings(Root, path=write(FOLDERS), overrides=overrides).data == Digits(size=9)
    assert load_settings(Root, path=write(FOLDERS), overrides=["data.kind=digits"]).data == Digits()


def test_mappings_are_replaced_whole_but_extended_by_a_key(write):
    path = write(DIGITS)
    load = lambda *overrides: load_settings(Root, path=path, overrides=overrides).vae.network.weights  # noqa: E731
    assert load("vae.network.weights.kl=2") == {"kl": 2.0, "swap": 0.5}
    assert load("vae.network.weights={kl: 2}") == {"kl": 2.0}


def test_optional_values_and_blocks(write):
    settings = load_settings(Root, path=write(DIGITS), overrides=["vae.clip=null", "extra.kind=digits", "extra.size=1"])
    assert settings.vae.clip is None
    assert settings.extra == Digits(size=1)


def test_a_kind_of_the_users_own(write):
    path = write(DIGITS)
    settings = load_settings(Root, path=path, overrides=["source.kind=pack:Source", "source.options.a=1"])
    assert settings.source == Custom(kind="pack:Source", options={"a": 1})
    assert load_settings(Root, path=path, overrides=["source.size=7"]).source == Digits(size=7)
    with pytest.raises(MandorlaError, match="unknown key `source.option`; did you mean `source.options`"):
        load_settings(Root, path=path, overrides=["source.kind=pack:Source", "source.option=1"])
    with pytest.raises(MandorlaError, match="`source.kind`: expected digits . <name>, got null"):
        load_settings(Root, path=path, overrides=["source=3"])


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (
            DIGITS + "vae:\n  lerning_rate: 1.0\n",
            4,
            "unknown key `vae.lerning_rate`; did you mean `vae.learning_rate`?",
        ),
        (DIGITS + "dropout: 0.5\n", 3, "unknown key `dropout`; did you mean `vae.network.dropout`?"),
        (DIGITS + "drpout: 0.5\n", 3, "unknown key `drpout`; did you mean `vae.network.dropout`?"),
        (DIGITS + "  zzz: 1\n", 3, "unknown key `data.zzz`; valid here: kind, size"),
        (DIGITS + "  size: '3'\n", 3, "`data.size`: expected int, got '3'"),
        (DIGITS + "  size: true\n", 3, "`data.size`: expected int, got true"),
        (DIGITS + "  size: 3.5\n", 3, "`data.size`: expected int, got 3.5"),
        (DIGITS + "run: 2024\n", 3, '`run`: expected str, got 2024; write "2024" in quotes'),
        ("run: a\n", None, "`data` is missing: expected block (kind: digits | folders)"),
        ("data:\n  size: 3\n", 1, "`data.kind`: expected digits | folders, got null"),
        (
            "data:\n  kind: digits\n  key: x\n",
            3,
            "unknown key `data.key`; it belongs to data.kind=folders: set that too",
        ),
        ("data:\n  kind: digit\n", 2, "`data.kind`: expected digits | folders, got digit; did you mean `digits`?"),
        ("data:\n  kind: folders\n", 1, "`data.folders` is missing: expected mapping to path"),
        (FOLDERS + "  key: 3\n", 5, '`data.key`: expected str | null, got 3; write "3" in quotes'),
        (
            DIGITS + "vae:\n  device: cdua\n",
            4,
            "`vae.device`: expected auto | cpu | cuda, got cdua; did you mean `cuda`?",
        ),
        (DIGITS + "vae:\n  network:\n    dropout: 1.5\n", 5, "`vae.network.dropout`: should be less than 1, got 1.5"),
        (DIGITS + "vae:\n  network:\n    channels: 3\n", 5, "`vae.network.channels`: expected list of int, got 3"),
        (
            DIGITS + "vae:\n  network:\n    channels:\n    - 3\n    - a\n",
            7,
            "`vae.network.channels[1]`: expected int, got a",
        ),
        (FOLDERS.replace("[3, 4]", "[3, x]"), 4, "`data.size[1]`: expected int, got x"),
        (
            DIGITS + "vae:\n  networks:\n    a:\n      dropot: 0\n",
            6,
            "unknown key `vae.networks.a.dropot`; did you mean",
        ),
        (DIGITS + "vae:\n  learning_rate: -1\n", 4, "`vae.learning_rate`: must be positive"),
        (DIGITS + "vae: 3\n", 3, "`vae`: expected block, got 3"),
        (DIGITS + "run: a\n\nrun: b\n", 5, "`run` is given twice"),
        (DIGITS + "run: [a\n", 4, "not valid YAML: "),
        (DIGITS + "run: !!python/name:os.system\n", 3, "the YAML tag"),
        ("- a\n", None, "expected `key: value` lines at the top, got [a]"),
        ("a: &a [*a]\n", None, "not valid YAML: "),
    ],
)
def test_a_mistake_in_a_file_names_line_key_and_remedy(write, text, line, message):
    path = write(text)
    with pytest.raises(MandorlaError) as error:
        load_settings(Root, path=path)
    place = f"{path}:{line}: " if line else f"{path}: "
    assert str(error.value).startswith(place + message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "vae.lerning_rate=1",
            "on the command line: unknown key `vae.lerning_rate`; did you mean `vae.learning_rate`?",
        ),
        ("vae.network.dropout=a", "on the command line: `vae.network.dropout`: expected float, got a"),
        ("run.x=1", "on the command line: `run`: expected str, got {x: 1}"),
        ("data.kind=folders", "on the command line: `data.folders` is missing"),
        ("data.kind=[]", "on the command line: `data.kind`: expected digits | folders, got []"),
        ("run", "on the command line: expected key.sub=value, got 'run'"),
        ("a..b=1", "on the command line: expected key.sub=value"),
        ("run=[", "on the command line: `run`:1: not valid YAML"),
        ("vae.learning_rate=.inf", "on the command line: `vae.learning_rate`: should be a finite number, got .inf"),
    ],
)
def test_a_mistake_on_the_command_line_says_so(write, override, message):
    with pytest.raises(MandorlaError, match="^[^\n]*$") as error:
        load_settings(Root, path=write(DIGITS), overrides=[override])
    assert str(error.value).startswith(message)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(MandorlaError, match="no such file"):
        read_yaml(tmp_path / "absent.yaml")
    with pytest.raises(MandorlaError, match="cannot be read"):
        read_yaml(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MandorlaError, match="cannot be read"):
        read_yaml(tmp_path / "binary")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: a\0b\n", "not valid YAML: unacceptable character"),
        ("? [a, b]\n: 1\n", ":1: a key is one word"),
        ("a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
            f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in ("ab", "bc", "cd", "de", "ef", "fg")
        ), "more than 10000 values"),
    ],
)  # fmt: skip
def test_hostile_yaml_is_one_line(write, text, message):
    with pytest.raises(MandorlaError, match=f"^[^\n]*{message}[^\n]*$"):
        read_yaml(write(text))


def test_scalars_follow_yaml_1_2(write):
    tree, lines = read_yaml(write("a: 1e-4\nb: no\nc: 010\nd: 2024-01-02\ne: 12:30\nf: .inf\ng: ~\nh: -.5\non: True\n"))
    assert tree == {
        "a": 1e-4,
        "b": "no",
        "c": 10,
        "d": "2024-01-02",
        "e": "12:30",
        "f": math.inf,
        "g": None,
        "h": -0.5,
        "on": True,
    }
    assert lines[("c",)] == 3


def test_an_empty_file_changes_nothing(write):
    assert load_settings(Training, path=write("# nothing\n")) == Training()


words = st.text(max_size=12) | st.sampled_from(
    ["1e5", "no", "null", "~", "0x1", "1_0", "12:30", "-", "=", ".inf", "010"]
)


@given(
    run=words,
    rate=st.floats(min_value=1e-300, allow_infinity=False),
    weights=st.dictionaries(words, st.floats(allow_nan=False, allow_infinity=False)),
    channels=st.lists(st.integers(min_value=1), max_size=3),
    folders=st.dictionaries(words, words.map(Path)),
)
def test_dump_round_trips(tmp_path_factory, run, rate, weights, channels, folders):
    network = Network(channels=tuple(channels), weights=weights)
    settings = Root(run=run, data=Folders(folders=folders), vae=Training(learning_rate=rate, networks={"a": network}))
    path = tmp_path_factory.mktemp("dump") / "config.yaml"
    path.write_text(dump(settings), encoding="utf-8")
    assert load_settings(Root, path=path) == settings


def test_dump_is_plain_yaml_for_other_readers():
    text = dump(Root(data=Digits(size=3)))
    assert yaml.safe_load(text)["vae"]["learning_rate"] == 1e-3
    assert "channels: [16, 32]" in text


def test_describe_lists_every_key_of_every_kind():
    rows = {(row.key, row.when): row for row in describe(Root)}
    assert rows["data.kind", ""].type == "digits | folders"
    assert rows["data.kind", ""].default == "required"
    assert rows["data.size", "data.kind=digits"][1:4] == ("int", "24", "Side in pixels.")
    assert rows["data.size", "data.kind=folders"].type == "[int, int]"
    assert rows["vae.network.dropout", ""] == (
        "vae.network.dropout", "float >= 0, < 1", "0.25", "Probability of setting a unit to zero.", ""
    )  # fmt: skip
    assert rows["vae", ""].meaning == "How one stage is trained."
    assert rows["vae.networks.<name>.channels", ""].default == "[16, 32]"
    assert rows["extra.kind", ""].default == "null"
    assert rows["source.kind", ""][1:3] == ("digits | <name>", "digits")
    assert rows["source.size", "source.kind=digits"].default == "12"
    assert rows["source.options", "source.kind=<name>"].default == "{}"


def test_describe_an_instance_shows_its_values_and_kinds():
    training = Training(clip=None, networks={"a": Network(dropout=0.5)})
    rows = {row.key: row for row in describe(Root(data=Digits(size=3), vae=training))}
    assert rows["vae.networks.a.dropout"].default == "0.5"
    assert rows["data.kind"].default == "digits"
    assert rows["data.size"].default == "3"
    assert rows["vae.clip"].default == "null"
    assert "data.folders" not in rows


def test_the_schema_carries_meanings():
    schema = json.dumps(Root.model_json_schema())
    assert "Side in pixels." in schema


class Places(Settings):
    """Hold paths."""

    out: Annotated[str | None, Relative()] = "runs/x"
    files: Annotated[tuple[str, ...], Relative(".py")] = ()
    named: Annotated[dict[str, str], Relative()] = {}


def test_paths_in_a_file_are_relative_to_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    Path("cfg").mkdir()
    Path("cfg/base.yaml").write_text("out: ../runs/mine\nfiles: [nets.py, package.nets, ~/mine.py]")
    Path("top.yaml").write_text("base: cfg/base.yaml")
    expected = Places(out=str(tmp_path / "runs" / "mine"), files=("cfg/nets.py", "package.nets", str(home / "mine.py")))
    assert load_settings(Places, path=Path("cfg/base.yaml")) == expected
    absolute = expected.model_copy(update={"files": (str(tmp_path / "cfg/nets.py"), *expected.files[1:])})
    assert load_settings(Places, path=Path("top.yaml")) == absolute, "a base may lie elsewhere"
    assert load_settings(Places, path=Path("cfg/base.yaml"), folder=Path()).files[0] == "nets.py"
    typed = load_settings(Places, path=Path("top.yaml"), overrides=["out=there", "files=[~/a.py, b.py]"])
    assert typed == Places(out="there", files=(str(home / "a.py"), "b.py")), "typed paths start at the current folder"
    assert load_settings(Places) == Places()
    assert load_settings(Places, overrides=["out=null"]).out is None
    Path("cfg/named.yaml").write_text("named: {a: nets/a.onnx, b: ~/b.onnx}")
    named = load_settings(Places, path=Path("cfg/named.yaml")).named
    assert named == {"a": str(Path("cfg/nets/a.onnx")), "b": str(home / "b.onnx")}


def test_a_kind_is_set_before_the_keys_of_its_block_and_after_the_block(write):
    path = write("data: {kind: digits, size: 9}\n")
    order = ["data.key=a", "data.folders={x: y}", "data.kind=folders"]
    assert load_settings(Root, path=path, overrides=order).data.key == "a"
    with pytest.raises(MandorlaError, match="`data.kind`: expected digits | folders, got foo"):
        load_settings(Root, path=path, overrides=["data={kind: digits}", "data.kind=foo"])
