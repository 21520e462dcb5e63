"""Export families that no table of `results/` holds, with random weights, for coverage sweeps.

Usage: python benchmarks/export_fresh.py FOLDER [NAME ...]

Needs an environment of its own with `torch==2.13.0 onnxscript transformers scikit-learn skl2onnx
onnxconverter-common onnxruntime einops`, and `timm==1.0.31 torchvision==0.28.0
segmentation_models_pytorch` installed with --no-deps (see export_timm.py). What is missing is left
out. Every network of fresh_nets.py, fresh_transformers.py and of the lists below is exported by
TorchScript and by dynamo: with all axes dynamic that its inputs name, else with a dynamic batch,
else static (every third one static at once); then some again as float16, quantised dynamically and
statically. A file that exists is left alone.
"""

from __future__ import annotations

import argparse
import inspect
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_names = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _names.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

SECONDS = 120
"""How long one export may take."""

TIMM = (
    "bat_resnext26ts cs3darknet_s darknet53 eca_botnext26ts_256 efficientnet_lite0 "
    "efficientnetv2_rw_t mixnet_s fbnetc_100 fbnetv3_b hardcorenas_a lcnet_050 "
    "mobilenet_edgetpu_v2_xs "
    "gcresnext26ts gcvit_xxtiny inception_v4 legacy_seresnet18 seresnext26d_32x4d nf_resnet26 "
    "nf_regnet_b0 regnetz_b16 regnetv_040 repghostnet_050 resnet10t resnetblur18 resnetv2_18 "
    "rdnet_tiny "
    "shvit_s1 swiftformer_xs tiny_vit_5m_224 tresnet_m vgg11_bn vit_relpos_small_patch16_224 "
    "vitamin_small_224 vovnet39a efficientvit_l1 fasternet_t0 ghostnetv2_100 ghostnetv3_100 "
    "hgnet_tiny "
    "mobilenetv1_100 caformer_s18 convformer_s18 eca_resnet33ts haloregnetz_b sebotnet33ts_256 "
    "spnasnet_100 wide_resnet50_2 xcit_tiny_12_p8_224 crossvit_tiny_240 sehalonet33ts"
).split()
FLEXIBLE = frozenset(
    "cs3darknet_s darknet53 efficientnet_lite0 mixnet_s fbnetc_100 lcnet_050 legacy_seresnet18 "
    "nf_resnet26 regnetz_b16 resnet10t resnetblur18 resnetv2_18 vovnet39a mobilenetv1_100 "
    "hgnet_tiny "
    "fasternet_t0 repghostnet_050".split()
)
"""Those that take images of any size."""

SMP = ("Unet UnetPlusPlus Linknet FPN PSPNet PAN DeepLabV3 DeepLabV3Plus MAnet UPerNet").split()

Builder = Callable[[], nn.Module]
Net = tuple[Builder, Sequence[str]]


def example(spec: str, other: bool = False) -> tuple[Tensor, dict[int, str]]:
    """Make an input of a text such as "ids N L=12": its kind and its axes, names being dynamic.

    With ``other`` the batch is one larger and other dynamic sizes are twice as large.
    """
    kind, *dims = spec.split()
    usual = {"N": 2, "L": 12, "H": 64, "W": 64, "T": 4000, "E": 30, "V": 10}
    shape, names = [], {}
    for k, dim in enumerate(dims):
        name, _, size = dim.partition("=")
        if name.isdigit():
            shape.append(int(name))
            continue
        n = int(size or usual[name])
        shape.append((n + 1 if name == "N" else 2 * n) if other else n)
        names[k] = name
    if kind == "float":
        return torch.randn(shape), names
    if kind == "ones":
        return torch.ones(shape, dtype=torch.int64), names
    highest = int(kind.removeprefix("ids") or 50)
    return torch.randint(highest, shape), names


def unsettled(model: nn.Module) -> nn.Module:
    """Move normalisations and layer scales far from the identity, which would hide errors."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    for name, parameter in model.named_parameters():
        values = parameter.detach().flatten()
        if len(values) > 1 and not name.endswith("bias") and (values == values[0]).all():
            parameter.data.uniform_(0.5, 1.5)
    return model.eval()


def timm_nets() -> dict[str, Net]:
    """Families of timm."""
    import timm

    found: dict[str, Net] = {}
    for name in TIMM:
        make = partial(timm.create_model, name, pretrained=False, num_classes=20)
        size = "H=96 W=96" if name in FLEXIBLE else ""
        if not size:
            side = timm.get_pretrained_cfg(name).input_size[-1] if timm.is_model(name) else 224
            size = f"{side} {side}"
        found[f"timm_{name}"] = make, [f"float N 3 {size}"]
    return found


def smp_nets() -> dict[str, Net]:
    """Segmentation networks."""
    import segmentation_models_pytorch as smp

    make = lambda name: getattr(smp, name)("resnet18", encoder_weights=None, classes=3)  # noqa: E731
    fixed = ("PAN", "PSPNet", "UPerNet")
    return {
        f"smp_{n.lower()}": (
            partial(make, n),
            [f"float N 3 {'96 96' if n in fixed else 'H=64 W=96'}"],
        )
        for n in SMP
    }


def nets() -> dict[str, Net]:
    """All networks that the environment can make."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    found: dict[str, Net] = {}

    def own() -> dict[str, Net]:
        from fresh_nets import NETS

        return NETS

    def transformer_nets() -> dict[str, Net]:
        from fresh_transformers import transformers_nets

        return transformers_nets()

    for part in (own, transformer_nets, timm_nets, smp_nets):
        try:
            found |= part()
        except ImportError as error:
            print(f"without {part.__name__}: {error}")
    return found


def shaped(names: dict[int, str], which: str) -> dict[int, str]:
    """The axes to leave dynamic."""
    if which == "dyn":
        return names
    return {k: n for k, n in names.items() if n == "N" and which == "batch"}


def takes_any(model: nn.Module) -> bool:
    """Whether a model takes `*args`, which dynamo then sees as one argument."""
    kinds = [p.kind for p in inspect.signature(model.forward).parameters.values()]
    return inspect.Parameter.VAR_POSITIONAL in kinds


def export(model: nn.Module, specs: Sequence[str], out: Path, dynamo: bool, which: str) -> None:
    """Export one model.

    Raises:
        Exception: of any kind, where the exporter fails.
    """
    made = [example(s) for s in specs]
    args = tuple(value for value, _ in made)
    inputs = [f"x{i}" for i in range(len(args))]
    axes = [shaped(names, which) for _, names in made]
    if dynamo:
        dims = tuple(dict.fromkeys(a, torch.export.Dim.DYNAMIC) for a in axes)
        shapes = (dims,) if takes_any(model) else dims
        torch.onnx.export(model, args, out, input_names=inputs, dynamo=True, opset_version=18,
                          dynamic_shapes=shapes if any(dims) else None, external_data=False,
                          verbose=False)  # fmt: skip
    else:
        named = dict(zip(inputs, axes, strict=True))
        torch.onnx.export(model, args, out, input_names=inputs, output_names=["y"], dynamo=False,
                          opset_version=17, dynamic_axes=named, verbose=False)  # fmt: skip


def runs(out: Path, specs: Sequence[str]) -> None:
    """Run an export, with two sizes of the axes that it declares dynamic.

    Raises:
        Exception: if onnxruntime refuses it or its first output is not finite.
    """
    import numpy as np
    import onnxruntime as ort

    session = ort.InferenceSession(out, providers=["CPUExecutionProvider"])
    inputs = {i.name: i.shape for i in session.get_inputs()}
    for other in (False, True):
        feeds = {}
        for k, spec in enumerate(specs):
            if (name := f"x{k}") in inputs:
                (small, large), shape = (
                    (example(spec, o)[0].numpy() for o in (False, True)),
                    inputs[name],
                )
                sizes = [
                    n if isinstance(n, int) else m
                    for n, m in zip(shape, (large if other else small).shape, strict=True)
                ]
                feeds[name] = np.resize(small, sizes)
        (first, *_) = session.run(None, feeds)
        if not np.isfinite(first).all():
            raise ValueError("not finite")


def out_of_time(*_: object) -> None:
    """Called by the alarm clock."""
    raise TimeoutError(f"{SECONDS} s")


def one(folder: Path, name: str, net: Net, dynamo: bool, number: int) -> None:
    """Export a network as dynamic as it goes."""
    stem = f"{name}_{'dynamo' if dynamo else 'script'}"
    if list(folder.glob(f"{stem}_*.onnx")):
        return
    build, specs = net
    start, problem = time.perf_counter(), ""
    for which in ("static",) if number % 3 == 2 else ("dyn", "batch", "static"):
        out = folder / f"{stem}_{which}.onnx"
        signal.alarm(SECONDS)
        try:
            torch.manual_seed(0)
            with torch.no_grad():
                export(unsettled(build()), specs, out, dynamo, which)
            runs(out, specs)
            print(f"ok {out.stem} {time.perf_counter() - start:.0f} s", flush=True)
            return
        except Exception as error:
            out.unlink(missing_ok=True)
            problem = f"{type(error).__name__}: {error!s:.150}".replace("\n", " ")
        finally:
            signal.alarm(0)
    print(f"FAIL {stem}: {problem}", flush=True)


# -- variants of what was exported ---------------------------------------------------------------


def half(source: Path, out: Path) -> None:
    """Write a model in float16, inputs and outputs too."""
    import onnx
    from onnxconverter_common import float16

    onnx.save(float16.convert_float_to_float16(onnx.load(source), keep_io_types=False), out)


def half_inside(source: Path, out: Path) -> None:
    """Write a model in float16 with float32 inputs and outputs, fused by onnxruntime's tool."""
    from onnxruntime.transformers.optimizer import optimize_model

    model = optimize_model(str(source), "bert", opt_level=0)
    model.convert_float_to_float16(keep_io_types=True)
    model.save_model_to_file(str(out))


def dynamic(source: Path, out: Path) -> None:
    """Quantise weights; activations while it runs."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(source, out, weight_type=QuantType.QInt8)


def static(source: Path, out: Path, per_channel: bool = True) -> None:
    """Quantise by QDQ pairs."""
    import onnxruntime as ort
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    inputs = ort.InferenceSession(source, providers=["CPUExecutionProvider"]).get_inputs()

    class Reader(CalibrationDataReader):
        left = 4

        def get_next(self) -> Any:
            self.left -= 1
            feeds = {}
            for i in inputs:
                shape = [
                    n if isinstance(n, int) else 2 if k == 0 else 64 for k, n in enumerate(i.shape)
                ]
                drawn = torch.randn(shape) if "float" in i.type else torch.randint(50, shape)
                feeds[i.name] = drawn.numpy()
            return feeds if self.left >= 0 else None

    quantize_static(source, out, Reader(), per_channel=per_channel, weight_type=QuantType.QInt8)


VARIANTS: dict[str, Callable[[Path, Path], None]] = {
    "fp16": half, "ortfp16": half_inside, "int8dynamic": dynamic,
    "qdq": static, "qdqtensor": partial(static, per_channel=False),
}  # fmt: skip

VARIED = {
    "fp16": "own_edsr timm_resnet10t own_tcn hf_electra hf_opt own_dlrm smp_linknet "
    "own_crnn hf_swin",
    "ortfp16": "hf_albert hf_electra hf_mpnet hf_gpt_neo",
    "int8dynamic": "hf_electra own_sasrec own_crnn own_ncf hf_wav2vec2 hf_mistral",
    "qdq": "own_edsr timm_resnet10t timm_mobilenetv1_100 own_dqn smp_linknet own_tcn "
    "timm_lcnet_050",
    "qdqtensor": "timm_vovnet39a own_yolov3 own_hifigan own_espcn timm_legacy_seresnet18",
}


def variants(folder: Path) -> None:
    """Make the quantised and float16 variants of the exports that are there."""
    import onnxruntime

    for kind, names in VARIED.items():
        for name in names.split():
            source = next(iter(sorted(folder.glob(f"{name}_script_*.onnx"))), None) or next(
                iter(sorted(folder.glob(f"{name}_dynamo_*.onnx"))), None)  # fmt: skip
            out = folder / f"{name}_{kind}.onnx"
            if source is None or out.exists():
                continue
            try:
                VARIANTS[kind](source, out)
                onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
                print(f"ok {out.stem}", flush=True)
            except Exception as error:
                out.unlink(missing_ok=True)
                print(f"FAIL {out.stem}: {error!r:.150}", flush=True)


def main() -> None:
    """Export everything, or the networks named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", help="what the names of the networks begin with")
    parser.add_argument("--exporter", choices=["both", "script", "dynamo"], default="both")
    a = parser.parse_args()
    a.folder.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore")
    signal.signal(signal.SIGALRM, out_of_time)
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)  # one fused operator that nothing exports
    wanted = {n: net for n, net in nets().items() if not a.names or n.startswith(tuple(a.names))}
    for dynamo in (False, True):  # which takes ten times as long
        for number, (name, net) in enumerate(wanted.items()):
            if a.exporter in ("both", "dynamo" if dynamo else "script"):
                one(a.folder, name, net, dynamo, number + dynamo)
    variants(a.folder)


if __name__ == "__main__":
    main()
