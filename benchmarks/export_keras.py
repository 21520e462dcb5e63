"""Export Keras models with random weights, by tf2onnx and by Keras itself, for coverage sweeps.

Usage: python benchmarks/export_keras.py FOLDER [NAME ...]

Needs tensorflow-cpu 2.21.0, keras 3.15.1 and tf2onnx 1.17.0. The graphs are channels-last with
Transposes around their convolutions.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import numpy as np
import tensorflow as tf
import tf2onnx
from keras import layers

CLASSES = 10
APPLICATIONS = (
    "ConvNeXtTiny DenseNet121 EfficientNetB0 EfficientNetV2B0 InceptionV3 MobileNet MobileNetV2 "
    "MobileNetV3Small NASNetMobile ResNet50 ResNet50V2 Xception"
).split()


def application(name: str) -> Callable[[], keras.Model]:
    """Return what builds a model of keras.applications on small images."""
    size = {"NASNetMobile": 224, "InceptionV3": 96, "Xception": 96}.get(name, 64)
    return lambda: getattr(keras.applications, name)(
        weights=None, input_shape=(size, size, 3), classes=CLASSES
    )


def unet() -> keras.Model:
    """Skip connections, transposed convolutions and upsampling."""
    x = keras.Input((32, 32, 3))
    a = layers.Conv2D(16, 3, padding="same", activation="relu")(x)
    b = layers.Conv2D(32, 3, strides=2, padding="same", activation="relu")(a)
    c = layers.Conv2D(64, 3, strides=2, padding="same", activation="relu")(b)
    y = layers.Conv2DTranspose(32, 3, strides=2, padding="same", activation="relu")(c)
    y = layers.SeparableConv2D(32, 3, padding="same")(layers.Concatenate()([y, b]))
    y = layers.UpSampling2D(2, interpolation="bilinear")(layers.LeakyReLU()(y))
    y = layers.Concatenate()([y, layers.PReLU(shared_axes=[1, 2])(a)])
    return keras.Model(x, layers.Conv2D(4, 1)(y))


def recurrent(kind: str) -> Callable[[], keras.Model]:
    """Return what builds a convolution and two recurrent layers over time."""

    def build() -> keras.Model:
        x = keras.Input((24, 8))
        y = layers.Conv1D(16, 3, padding="same", activation="relu")(x)
        y = layers.Bidirectional(getattr(layers, kind)(24, return_sequences=True))(y)
        y = getattr(layers, kind)(32)(y)
        return keras.Model(x, layers.Dense(CLASSES)(y))

    return build


def transformer() -> keras.Model:
    """Embedding, attention and a gated MLP, as in Keras' examples."""
    x = keras.Input((16,), dtype="int32")
    y = layers.Embedding(50, 32)(x)
    for _ in range(2):
        z = layers.LayerNormalization()(y)
        y = layers.Add()([y, layers.MultiHeadAttention(4, 8)(z, z)])
        z = layers.LayerNormalization()(y)
        z = layers.Dense(32)(layers.Dense(64, activation="silu")(z))
        y = layers.Add()([y, z])
    y = layers.GlobalAveragePooling1D()(y)
    return keras.Model(x, layers.Dense(CLASSES, activation="softmax")(y))


def volumes() -> keras.Model:
    """Three-dimensional convolutions with group normalisation and squeeze-and-excite."""
    x = keras.Input((8, 16, 16, 2))
    y = layers.Conv3D(16, 3, padding="same", activation="relu")(x)
    y = layers.GroupNormalization(4)(layers.MaxPooling3D()(y))
    y = layers.Conv3D(32, 3, padding="same", activation="relu")(y)
    s = layers.GlobalAveragePooling3D(keepdims=True)(y)
    s = layers.Dense(32, activation="sigmoid")(layers.Dense(8, activation="relu")(s))
    y = layers.GlobalMaxPooling3D()(layers.Multiply()([y, s]))
    return keras.Model(x, layers.Dense(CLASSES)(y))


NETS: dict[str, Callable[[], keras.Model]] = {
    **{name.lower(): application(name) for name in APPLICATIONS},
    "unet": unet,
    "lstm": recurrent("LSTM"),
    "gru": recurrent("GRU"),
    "transformer": transformer,
    "volumes": volumes,
}


def draw(model: keras.Model) -> None:
    """Give normalisations statistics and scales that are far from the identity."""
    rng = np.random.default_rng(0)
    for layer in model._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            layer.moving_mean.assign(rng.normal(0, 0.1, layer.moving_mean.shape))
            layer.moving_variance.assign(rng.uniform(0.5, 1.5, layer.moving_variance.shape))


def main() -> None:
    """Export every network, in both ways."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    a = parser.parse_args()
    a.folder.mkdir(parents=True, exist_ok=True)
    for name in a.names or NETS:
        keras.utils.set_random_seed(0)
        model = NETS[name]()
        draw(model)
        spec = tuple(tf.TensorSpec(i.shape, i.dtype, name="input") for i in model.inputs)
        model(np.zeros([2, *model.inputs[0].shape[1:]], model.inputs[0].dtype))
        ways: dict[str, Callable[[Path], object]] = {
            "tf2onnx": lambda out, model=model, spec=spec: tf2onnx.convert.from_keras(
                model, input_signature=spec, opset=17, output_path=str(out)
            ),
            "keras": lambda out, model=model: model.export(str(out), "onnx", verbose=False),
        }
        for way, export in ways.items():
            try:
                export(a.folder / f"{name}_{way}.onnx")
                print(f"ok {name} {way}", flush=True)
            except Exception as error:
                print(f"FAIL {name} {way}: {error!r:.150}", flush=True)


if __name__ == "__main__":
    main()
