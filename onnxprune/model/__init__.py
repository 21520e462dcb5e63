"""An ONNX model as a value: read, edit, run, observe, count."""
