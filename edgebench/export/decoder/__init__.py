"""Decoders of the Llama family: from a checkpoint to ONNX, one layer's tensors in memory at a time.

The graph is written straight from config.json and the safetensors files, not traced: tracing wants
the whole model as a torch module, and a model of 7 B parameters in fp32 is larger than most hosts.
"""
