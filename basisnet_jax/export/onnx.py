"""ONNX, converted by tf2onnx from a .tflite file, with the same static batch and names (`pip install '.[onnx]'`)."""

import os
import tempfile
from collections.abc import Callable

import numpy as np

from basisnet_jax.serving.tflite import SIGNATURE, in_pieces

OPSET = 17


def to_onnx(tflite: bytes) -> bytes:
    """Converts a .tflite file to ONNX; inputs and outputs keep their names."""
    import tf2onnx
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_content=tflite).get_signature_runner(SIGNATURE)
    details = {**runner.get_input_details(), **runner.get_output_details()}
    names = {detail["name"]: name for name, detail in details.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.tflite")
        with open(path, "wb") as file:
            file.write(tflite)
        model, _ = tf2onnx.convert.from_tflite(path, opset=OPSET)
    for node in model.graph.node:
        node.input[:] = [names.get(x, x) for x in node.input]
        node.output[:] = [names.get(x, x) for x in node.output]
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        value.name = names.get(value.name, value.name)
    return model.SerializeToString()


def load_onnx(content: bytes) -> Callable[..., list[np.ndarray]]:
    """Makes a function like `tflite.LiteRTStage` that runs in ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    shapes = {item.name: item.shape for item in session.get_inputs()}
    outputs = {item.name for item in session.get_outputs()}
    names = [name for name in ("logits", "coefficients") if name in outputs]
    return in_pieces(lambda feed: session.run(names, feed), shapes)
