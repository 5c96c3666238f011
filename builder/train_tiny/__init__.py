"""Trains `dia-tiny`, the model that comes with the worker, on speech made by other programs.

    prepare   sentences and voices into one folder, where package registries can be reached
    data      sentences → speech
    codec     speech → a small DAC
    encode    speech → codes
    model     codes → a small Dia
    check     whether what came out ends, and how fast it is

Only `prepare` needs more than torch, numpy, safetensors and onnxruntime. README.md has the
commands.
"""
