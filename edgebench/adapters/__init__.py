"""The adapters' mathematics, one file a family. Nothing here reads files or knows of ONNX."""
