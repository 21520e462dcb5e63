"""Every setting stands once, and says the same wherever it is given."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from command import run, save, tiny_net, tiny_samples

import onnxprune
from onnxprune.cli import commands
from onnxprune.cli.options import flag_of
from onnxprune.plans.constraints import AtLeast, Between, EachAtLeast, OneOf
from onnxprune.plans.reading import Reading
from onnxprune.plans.request import Request
from onnxprune.plans.settings import SETTINGS, Settings, taken

VERBS = ("prune", "plan", "apply", "sweep", "inspect", "evaluate", "bench")


def invalid() -> Iterator[tuple[str, Any, str]]:
    """Yield each setting with values that its constraint excludes, as Python and as text."""
    for name, spec in SETTINGS.items():
        constraint = spec.constraint
        if isinstance(constraint, Between):
            values: list[Any] = [-0.5, 1.5, float("nan"), *([] if constraint.closed else [0, 1])]
        elif isinstance(constraint, AtLeast):
            values = [constraint.least - 1]
            values += [] if constraint.most is None else [constraint.most + 1]
        elif isinstance(constraint, OneOf):
            values = ["nothing-like-it"]
        elif isinstance(constraint, EachAtLeast):
            values = [{"N": constraint.least - 1}]
        else:
            assert constraint is None
            values = []
        for value in values:
            text = f"N={value['N']}" if isinstance(value, dict) else str(value)
            yield name, value, text


CASES = list(invalid())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("files")
    return save(tiny_net(), folder / "m.onnx"), tiny_samples(folder / "d.npz")


@pytest.mark.parametrize(("name", "value", "text"), CASES, ids=lambda v: str(v)[:20])
def test_an_invalid_value_is_refused_in_python_by_name(name: str, value: Any, text: str) -> None:
    with pytest.raises(onnxprune.OnnxpruneError, match=rf"^{name}\b") as error:
        taken("prune", {"sparsity": 0.5, name: value})
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 1, text


@pytest.mark.parametrize(("name", "value", "text"), CASES, ids=lambda v: str(v)[:20])
def test_an_invalid_value_is_refused_on_the_command_line_by_flag(
    name: str, value: Any, text: str, files: tuple[Path, Path]
) -> None:
    model, data = files
    result = run("prune", str(model), "--calib", str(data), f"{flag_of(name)}={text}")
    assert result.exit_code == (1 if text == "nan" else 2), value  # click lets nan through
    assert (name if text == "nan" else flag_of(name)) in result.stderr


def test_there_is_a_case_for_every_constraint() -> None:
    assert {name for name, _, _ in CASES} == {n for n, s in SETTINGS.items() if s.constraint}


def test_keywords_requests_and_options_name_the_same_settings() -> None:
    every = [f.name for f in (*fields(Request), *fields(Reading))]
    assert sorted(get_type_hints(Settings)) == sorted(every) == sorted(SETTINGS)
    for verb in VERBS:
        options = {p.name for p in commands.main.commands[verb].params}
        wanted = {name for name, spec in SETTINGS.items() if verb in spec.verbs}
        own = {"batch_size"} if verb == "bench" else set()
        assert wanted <= options, verb
        assert not (set(SETTINGS) - wanted - own) & options, verb


@pytest.mark.parametrize("verb", ["prune", "apply", "sweep", "inspect", "evaluate"])
def test_a_setting_that_there_is_not_is_named(verb: str) -> None:
    with pytest.raises(TypeError, match=rf"{verb}\(\) takes no setting 'sparsness'; it takes"):
        taken(verb, {"sparsness": 0.5})


def test_settings_change_a_request_that_is_given(files: tuple[Path, Path]) -> None:
    model, data = files
    request = Request(sparsity=0.3, recover="none", metric="magnitude", mode="weights")
    result = onnxprune.prune(model, data, request, sparsity=0.4, cache=False)
    assert result.report.request["sparsity"] == 0.4
    assert result.report.request["mode"] == "weights"


def test_each_setting_is_documented_where_it_stands() -> None:
    for name, spec in SETTINGS.items():
        assert spec.help.endswith("."), name
        assert set(spec.verbs) <= set(VERBS), name


def test_readme_names_no_option_that_there_is_not() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    options = {o for c in commands.main.commands.values() for p in c.params for o in p.opts}
    others = re.compile(r"\b(pip|python|benchmarks)\b")  # whose options are not ours
    lines = [line for line in text.splitlines() if not others.search(line)]
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", "\n".join(lines)))
    assert named
    assert named - options <= {"--help", "--version"}
