"""Export timm models of many families with random weights, for coverage sweeps.

Usage: python benchmarks/export_timm.py FOLDER [NAME ...] [--dynamo]

Needs torch 2.13.0 and onnxscript, and timm 1.0.31 and torchvision 0.28.0 installed with
--no-deps (on a machine without CUDA the extension of torchvision's wheel does not load; timm
needs two names from it only).
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

_names = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _names.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import timm  # noqa: E402

NAMES = (
    "beit_base_patch16_224 botnet26t_256 cait_xxs24_224 coatnet_0_rw_224 coat_lite_tiny "
    "convit_tiny convmixer_768_32 convnext_atto convnextv2_atto crossvit_9_240 cspresnet50 "
    "davit_tiny deit_tiny_patch16_224 deit3_small_patch16_224 dla46_c dm_nfnet_f0 dpn48b "
    "eca_nfnet_l0 edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientnet_b0 "
    "efficientvit_b0 efficientvit_m0 ese_vovnet19b_dw eva02_tiny_patch14_224 fastvit_t8 "
    "focalnet_tiny_srf gernet_s ghostnet_050 gmlp_ti16_224 halonet26t hgnetv2_b0 hiera_tiny_224 "
    "hrnet_w18_small inception_next_atto lambda_resnet26t levit_128s maxvit_pico_rw_256 "
    "mambaout_femto mixer_b32_224 mobilenetv4_conv_small mobileone_s0 mobilevit_xxs "
    "mobilevitv2_050 mvitv2_tiny nest_tiny nextvit_small pit_ti_224 poolformer_s12 pvt_v2_b0 "
    "regnety_002 repvgg_a0 repvit_m0_9 res2net50_14w_8s resmlp_12_224 resnest14d rexnet_100 "
    "selecsls42 semnasnet_050 sequencer2d_s skresnet18 starnet_s050 swinv2_tiny_window8_256 "
    "tinynet_e tnt_s_patch16_224 twins_svt_small visformer_tiny vit_tiny_patch16_224 "
    "volo_d1_224 xception41p xcit_nano_12_p16_224"
).split()


def build(name: str) -> nn.Module:
    """Return a model whose normalisations and layer scales are far from the identity."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=100).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    for name_of, parameter in model.named_parameters():
        values = parameter.detach().flatten()
        if len(values) > 1 and not name_of.endswith("bias") and (values == values[0]).all():
            parameter.data.uniform_(0.5, 1.5)  # also zeros, which would hide a whole branch
    return model


def main() -> None:
    """Export every model named, or a selection of families."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--dynamo", action="store_true")
    a = parser.parse_args()
    a.folder.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore")
    for name in a.names or NAMES:
        start = time.perf_counter()
        out = a.folder / f"{name}{'_dynamo' if a.dynamo else ''}.onnx"
        kind: dict[str, Any] = {"dynamo": True, "opset_version": 18} if a.dynamo else {
            "dynamo": False, "opset_version": 17,
            "dynamic_axes": {"image": {0: "batch"}, "logits": {0: "batch"}},
        }  # fmt: skip
        try:
            model = build(name)
            image = torch.randn(1, *timm.data.resolve_model_data_config(model)["input_size"])
            torch.onnx.export(model, (image,), out, input_names=["image"],
                              output_names=["logits"], verbose=False, **kind)  # fmt: skip
            print(f"ok {name} {time.perf_counter() - start:.0f} s", flush=True)
        except Exception as error:
            print(f"FAIL {name}: {error!r:.150}", flush=True)


if __name__ == "__main__":
    main()
