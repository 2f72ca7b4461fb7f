"""The network as an ONNX file, in int8 too, and ONNX Runtime as an engine; no notebook needs it."""
