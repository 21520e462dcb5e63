"""Plans: what plan writes and apply carries out is what prune does; damaged ones are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from command import digits, done, report_of, run, save, tiny_net, tiny_samples
from onnx import numpy_helper

import onnxprune
from onnxprune import PlanError, PruningPlan, Request
from onnxprune.plans.plan_file import to_json
from onnxprune.plans.schema import request_schema

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "onnxprune" / "plans" / "plan.schema.json").read_text())
RESNET = ROOT / "models" / "digits_resnet.onnx"


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with ``tiny.onnx``, ``data.npz`` and a plan."""
    monkeypatch.chdir(tmp_path)
    save(tiny_net(), tmp_path / "tiny.onnx")
    tiny_samples(tmp_path / "data.npz")
    done("plan", "tiny.onnx", "--calib", "data.npz", "--sparsity", 0.5, "--mode", "channels")
    return tmp_path / "tiny.plan.json"


def edited(path: Path, change: Callable[[Any], Any]) -> Path:
    """Change a plan's file; ``change`` alters what was read, or returns what replaces it."""
    values = json.loads(path.read_text())
    result = change(values)
    path.write_text(json.dumps(values if result is None else result))
    return path


# -- the same as prune -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "budget",
    [
        ("--sparsity", 0.5, "--mode", "channels"),
        ("--sparsity", 0.6, "--mode", "weights"),
        ("--sparsity", 0.7, "--max-drop", 0.3),
        ("--macs", 0.6),
        ("--params", 0.6),
        ("--max-drop", 0.3),
        ("--sparsity", 0.5, "--seed", 4, "--exclude", "/conv1", "--align", 1),
    ],
    ids=str,
)
def test_plan_and_apply_give_the_bytes_of_prune(tmp_path: Path, budget: tuple[object, ...]) -> None:
    model, data = save(tiny_net(), tmp_path / "tiny.onnx"), tiny_samples(tmp_path / "data.npz")
    common = ["--calib", data, "--recover", "full"]
    done("prune", model, *common, *budget, "-o", tmp_path / "one.onnx")
    text = done("plan", model, *common, *budget, "--json").stdout
    plan = tmp_path / "tiny.plan.json"
    assert text == plan.read_text()
    jsonschema.validate(json.loads(text), SCHEMA)
    done("apply", model, plan, "--calib", data, "-o", tmp_path / "two.onnx")
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()


def test_a_model_with_a_skip_path_too(tmp_path: Path) -> None:
    """In auto mode, where the plan comes of trials: with coupled channels and with zeros."""
    few = digits(tmp_path / "few")
    request = Request(sparsity=0.9, max_drop=0.05, recover="bias")
    plan = onnxprune.plan(RESNET, few, request)
    path = tmp_path / "p.json"
    onnxprune.save_plan(plan, path)
    again = onnxprune.load_plan(path)
    assert again.request == request
    assert all(np.array_equal(plan.keep[n], again.keep[n]) for n in plan.keep)
    assert plan.masks
    assert all(np.array_equal(plan.masks[n], again.masks[n]) for n in plan.masks)
    applied = onnxprune.apply(RESNET, again, few)
    pruned = onnxprune.prune(RESNET, few, sparsity=0.9, max_drop=0.05, recover="bias")
    assert applied.model == pruned.model
    one, two = (r.report.to_dict() for r in (applied, pruned))
    assert one.pop("timings").keys() != two.pop("timings").keys()
    assert one == two


def test_without_samples(tmp_path: Path) -> None:
    model = save(tiny_net(), tmp_path / "tiny.onnx")
    done("plan", model, "--random-inputs", "--sparsity", 0.5)
    done("apply", model, tmp_path / "tiny.plan.json", "-o", tmp_path / "two.onnx")
    done("prune", model, "--random-inputs", "--sparsity", 0.5, "-o", tmp_path / "one.onnx")
    result = run("apply", model, tmp_path / "tiny.plan.json", "--calib", "d", "-o", tmp_path / "x")
    assert result.exit_code == 1
    assert "got d, the request asks for random inputs" in result.stderr
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()


# -- editing ---------------------------------------------------------------------------------


def test_an_edit_is_carried_out_and_proven(tiny: Path) -> None:
    first = json.loads(tiny.read_text())["groups"][0]
    kept = first["keep"][:2]

    def change(plan: Any) -> None:
        plan["groups"][0]["keep"] = kept[::-1]
        del plan["groups"][1:]

    edited(tiny, change)
    report = report_of(
        "apply", "tiny.onnx", tiny, "--calib", "data.npz", "-o", "out.onnx", "--recover", "none"
    )
    assert [g["kept"] for g in report["groups"]] == [2, 8]
    assert report["verification"]["max_rel_error"] < 1e-5
    assert report["request"]["recover"] == "none"
    old, new = (
        {t.name: numpy_helper.to_array(t) for t in onnx.load(f).graph.initializer}
        for f in ("tiny.onnx", "out.onnx")
    )
    assert np.array_equal(new["conv1.w"], old["conv1.w"][sorted(kept)])
    assert np.array_equal(new["conv2.w"], old["conv2.w"][:, sorted(kept)])


def test_an_edit_that_misses_the_budget_is_a_warning(tiny: Path) -> None:
    edited(tiny, lambda plan: plan.update(groups=[]))
    result = done("apply", "tiny.onnx", tiny, "--calib", "data.npz", "-o", "out.onnx", "-q")
    assert "has sparsity 0, requested 0.5: the plan was edited" in result.stderr


def test_a_plan_made_with_samples_needs_them(tiny: Path) -> None:
    result = run("apply", "tiny.onnx", tiny, "-o", "out.onnx")
    assert result.exit_code == 1
    assert "got no samples, the request asks for samples" in result.stderr


def test_gates_hold_for_plans(tiny: Path) -> None:
    common = ["apply", "tiny.onnx", tiny, "--calib", "data.npz", "--recover", "none"]

    def change(plan: Any) -> None:
        for group in plan["groups"]:
            group["keep"] = group["keep"][:1]

    edited(tiny, change)
    missed = run(*common, "--min-accuracy", 1, "-o", "out.onnx", "-q")
    assert missed.exit_code == 3
    assert "held-out samples, wanted are 1" in missed.stderr
    assert not Path("out.onnx").exists()
    done(*common, "--min-accuracy", 1, "-o", "out.onnx", "--force")
    onnx.checker.check_model("out.onnx", full_check=True)


def test_zeros_can_be_edited_with_numpy(tiny: Path) -> None:
    """As documented: bits in C order, 1 stays."""
    import base64

    keep = np.ones((8, 2, 3, 3), dtype=bool)
    keep[3, 0] = keep[:, 1, 0] = False

    def change(plan: Any) -> None:
        bits = base64.b64encode(np.packbits(keep)).decode()
        plan.update(groups=[], zeros={"conv1.w": {"shape": [8, 2, 3, 3], "keep": bits}})

    edited(tiny, change)
    out = ["-o", "out.onnx", "--recover", "none", "-q"]
    done("apply", "tiny.onnx", tiny, "--calib", "data.npz", *out)
    old, new = (
        {t.name: numpy_helper.to_array(t) for t in onnx.load(f).graph.initializer}
        for f in ("tiny.onnx", "out.onnx")
    )
    assert np.array_equal(new.pop("conv1.w"), np.where(keep, old.pop("conv1.w"), 0))
    assert all(np.array_equal(new[n], old[n]) for n in old)


# -- what is refused -------------------------------------------------------------------------


def group(**changes: Any) -> Callable[[Any], None]:
    return lambda plan: plan["groups"][0].update(changes)


def request(**changes: Any) -> Callable[[Any], None]:
    return lambda plan: plan["request"].update(changes)


def zeros(**changes: Any) -> Callable[[Any], None]:
    entry = {"shape": [8, 2, 3, 3], "keep": "/" * 24, **changes}
    return lambda plan: plan["zeros"].update({entry.pop("name", "conv1.w"): entry})


FOREIGN_TO_THE_SCHEMA: dict[str, tuple[Callable[[Any], Any], str]] = {
    "no object": (lambda _: [1], r"the file is \[1\], expected an object"),
    "format": (lambda p: p.update(format="x"), "format is \"x\", expected 'onnxprune-plan'"),
    "version": (lambda p: p.update(version=2), "version is 2, this program reads 1"),
    "missing": (lambda p: p.pop("groups") and None, "key 'groups' is missing; expected"),
    "unknown": (lambda p: p.update(group=[]), "unknown key 'group'; expected"),
    "hash": (lambda p: p.update(model_sha256=1), "model_sha256 is 1, expected a string"),
    "groups": (lambda p: p.update(groups={}), r"groups is \{\}, expected a list"),
    "no group": (lambda p: p["groups"].append(3), r"groups\[2\] is 3, expected an object"),
    "name": (group(name=None), r"groups\[0\]: name is null, expected a string"),
    "nodes": (group(nodes="a"), 'nodes is "a", expected a list of strings'),
    "units": (group(units=0), "units is 0, expected a number of at least 1"),
    "keep": (group(keep="0-3"), 'keep is "0-3", expected a list of indices'),
    "no index": (group(keep=[1.5]), "keep holds 1.5, expected whole numbers from 0 to 7"),
    "flag": (group(keep=[True]), "keep holds true, expected whole numbers"),
    "negative": (group(keep=[-1]), "keep holds -1, expected whole numbers from 0 to 7"),
    "twice": (group(keep=[1, 2, 1]), "keep holds 1 twice"),
    "empty": (group(keep=[]), "group '/conv1': keep is empty, which would empty a layer"),
    "shape": (zeros(shape=[8, "2"]), "shape is .*, expected a list of sizes"),
    "bits": (zeros(keep=7), "zeros 'conv1.w': keep is 7, expected bits in base64"),
    "setting": (request(speed=1), "request: unknown key 'speed'; expected"),
    "setting type": (request(sparsity="0.5"), 'request: sparsity is "0.5", expected float'),
    "setting flag": (request(seed=True), "request: seed is true, expected int"),
    "setting range": (request(sparsity=2), "sparsity must lie between 0 and 1; got 2"),
    "globs": (request(exclude=[1]), r"request: exclude is \[1\], expected a list of strings"),
}
BEYOND_THE_SCHEMA: dict[str, tuple[Callable[[Any], Any], str]] = {
    "group twice": (lambda p: p["groups"].append(p["groups"][0]), "expected a string of its own"),
    "range": (group(keep=[8]), "group '/conv1': keep holds 8, expected whole numbers from 0 to 7"),
    "many units": (group(units=10**15, keep=[0]), "units is 1000000000000000, expected"),
    "other units": (group(units=9), "units is 9, the model has 8"),
    "unknown group": (group(name="/x"), "group '/x': the model has no such group .* '/conv1'"),
    "excluded": (request(exclude=["*conv1"]), "group '/conv1': the model has no such group"),
    "no base64": (zeros(keep="?"), 'keep is "\\?", expected bits in base64'),
    "few bits": (zeros(keep="////"), r"has 3 bytes, expected 18 for shape \[8, 2, 3, 3\]"),
    "huge mask": (zeros(shape=[10**9, 10**9]), "keep has 18 bytes, expected 125000000000000000"),
    "no bits": (zeros(keep="A" * 24), "zeros 'conv1.w': keeps nothing, which would empty a layer"),
    "mask shape": (zeros(shape=[2, 8, 3, 3]), r"\[2, 8, 3, 3\], the model's tensor has \[8, 2"),
    "no weight": (zeros(name="conv1.b"), "zeros 'conv1.b': is no weight that may be zeroed"),
    "many axes": (zeros(shape=[1] * 100, keep="gA=="), "shape has 100 axes, expected 32 at most"),
    "model": (lambda p: p.update(model_sha256="0" * 64), "the plan was made for another model"),
    "two budgets": (request(macs=0.5), "give exactly one of"),
}


@pytest.mark.parametrize(
    ("change", "message"), [*FOREIGN_TO_THE_SCHEMA.values(), *BEYOND_THE_SCHEMA.values()],
    ids=[*FOREIGN_TO_THE_SCHEMA, *BEYOND_THE_SCHEMA],
)  # fmt: skip
def test_plans_that_cannot_be(tiny: Path, change: Callable[[Any], Any], message: str) -> None:
    edited(tiny, change)
    result = run("apply", "tiny.onnx", tiny, "--calib", "data.npz", "-o", "out.onnx")
    assert result.exit_code == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("onnxprune: error: ")
    assert not Path("out.onnx").exists()
    with pytest.raises(onnxprune.OnnxpruneError, match=message):
        onnxprune.apply("tiny.onnx", tiny, "data.npz")


@pytest.mark.parametrize("name", FOREIGN_TO_THE_SCHEMA)
def test_the_schema_refuses_them_too(tiny: Path, name: str) -> None:
    jsonschema.validate(json.loads(tiny.read_text()), SCHEMA)
    edited(tiny, FOREIGN_TO_THE_SCHEMA[name][0])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(json.loads(tiny.read_text()), SCHEMA)


NUMBERS: dict[str, tuple[str, str]] = {
    "thousands of digits": ("1" + "0" * 5000, r"10000.*\.\.\. is too large a number"),
    "more than 64 bits": ("9223372036854775808", "is too large a number"),
    "negative": ("-9223372036854775809", "is too large a number"),
    "infinite": ("1e400", "1e400 is not a finite number"),
    "NaN": ("NaN", "NaN is not a finite number"),
    "Infinity": ("-Infinity", "-Infinity is not a finite number"),
    "nested": ("[" * 3000 + "]" * 3000, "is not valid JSON|is .*, expected"),
    "long text": ('"' + "x" * 5000 + '"', r"x\.\.\."),
    "half a pair": ('"\\ud800"', "expected|must be|this program reads"),
}
PLACES = {
    "setting": '"sparsity": 0.5',
    "seed": '"seed": 0',
    "mode": '"mode": "channels"',
    "units": '"units": 8',
    "version": '"version": 1',
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize(("number", "message"), NUMBERS.values(), ids=NUMBERS)
def test_values_that_no_machine_counts_with(
    tiny: Path, number: str, message: str, place: str
) -> None:
    text = tiny.read_text()
    assert place in text
    tiny.write_text(text.replace(place, f"{place.partition(':')[0]}: {number}", 1))
    with pytest.raises(PlanError, match=message) as refusal:
        onnxprune.load_plan(tiny)
    assert len(str(refusal.value)) < 1000


def test_many_threads_are_a_mistake(tiny: Path) -> None:
    edited(tiny, request(threads=10**9))
    with pytest.raises(PlanError, match="threads must be at most 1024; got 1000000000"):
        onnxprune.load_plan(tiny)


def test_a_byte_order_mark_is_no_obstacle(tiny: Path) -> None:
    plan = onnxprune.load_plan(tiny)
    tiny.write_bytes(b"\xef\xbb\xbf" + tiny.read_bytes())
    assert to_json(onnxprune.load_plan(tiny)) == to_json(plan)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not valid JSON"),
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ('{"format": 1, "format": 2}', "key 'format' occurs twice"),
        ("\udcff", "cannot be read as a plan"),
    ],
    ids=["empty", "half", "deep", "twice", "bytes"],
)
def test_files_that_are_no_plan(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(PlanError, match=message):
        onnxprune.load_plan(path)
    with pytest.raises(PlanError, match=r"no\.json: cannot be read"):
        onnxprune.load_plan(tmp_path / "no.json")


BLIND = Request(sparsity=0.5, metric="magnitude", recover="none", random_inputs=True)


def test_a_plan_from_python_that_would_empty_a_layer(tmp_path: Path) -> None:
    model = save(tiny_net(), tmp_path / "tiny.onnx")
    sha = onnxprune.plan(model, None, BLIND).model_sha256
    plan = PruningPlan(sha, {"/conv1": np.zeros(8, dtype=bool)}, request=BLIND)
    with pytest.raises(PlanError, match=r"tensor 'conv\d.w': nothing would be left of axis"):
        onnxprune.apply(model, plan)


def test_a_plan_without_a_request_is_refused(tmp_path: Path) -> None:
    model = save(tiny_net(), tmp_path / "tiny.onnx")
    with pytest.raises(PlanError, match="holds no request"):
        onnxprune.apply(model, PruningPlan(""))


# -- files -----------------------------------------------------------------------------------


def test_a_plan_is_not_overwritten(tiny: Path) -> None:
    common = ["plan", "tiny.onnx", "--calib", "data.npz", "--sparsity", 0.3]
    before = tiny.read_text()
    refused = run(*common)
    assert refused.exit_code == 1
    assert "tiny.plan.json: exists already; use --force" in refused.stderr
    assert tiny.read_text() == before
    assert "wrote " in done(*common, "--force").stdout
    assert tiny.read_text() != before
    over = run(*common, "-o", "data.npz", "--force")
    assert "data.npz: is an input of this run" in over.stderr
    model = run("apply", "tiny.onnx", tiny, "--calib", "data.npz", "-o", tiny, "--force")
    assert "tiny.plan.json: is an input of this run" in model.stderr


def test_the_schema_knows_every_setting() -> None:
    written = dict(SCHEMA["properties"]["request"])
    del written["description"]
    assert written == request_schema()
    assert set(written["properties"]) == {f.name for f in fields(Request)}


@pytest.mark.parametrize(
    "change",
    [{}, {"align": 4}, {"exclude": ("a*", "b")}, {"sparsity": None, "size": 10}, {"max_drop": 0.1}],
    ids=str,
)
def test_requests_come_back_as_they_were(tmp_path: Path, change: dict[str, Any]) -> None:
    request = replace(Request(sparsity=0.5, seed=3, output="é"), **change)
    path = tmp_path / "plan.json"
    onnxprune.save_plan(PruningPlan("0", request=request), path)
    jsonschema.validate(json.loads(path.read_text()), SCHEMA)
    assert onnxprune.load_plan(path).request == request
    assert to_json(onnxprune.load_plan(path)) == path.read_text()
