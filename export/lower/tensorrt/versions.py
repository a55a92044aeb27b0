"""What each version of TensorRT reads, with where that is known from."""

from __future__ import annotations

# The newest opset that a version's parser states, oldest version first.
# 8.6: NVIDIA/Deep-Learning-Accelerator-SW, operator support; 10.x: the release notes of 10.0, 10.9
# and 10.13, and onnx-tensorrt docs/operators.md of 10.15; 11: NVIDIA's ONNX Opset Guide.
NEWEST_OPSETS: dict[str, int] = {"8.6": 17, "10.0": 20, "10.9": 22, "10.13": 24, "11.0": 25}

# Operators that onnx-tensorrt's docs/operators.md of 10.15 marks as not supported.
UNSUPPORTED: frozenset[str] = frozenset({
    "AffineGrid", "Bernoulli", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor",
    "Col2Im", "CenterCropPad", "Compress", "ConcatFromSequence", "ConvInteger", "DFT", "Det",
    "DynamicQuantizeLinear", "ImageDecoder", "MatMulInteger", "MaxRoiPool", "MaxUnpool",
    "MelWeightMatrix", "Multinomial", "NegativeLogLikelihoodLoss", "Optional",
    "OptionalGetElement", "OptionalHasElement", "QLinearConv", "QLinearMatMul", "RegexFullMatch",
    "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert",
    "SequenceLength", "SequenceMap", "SoftmaxCrossEntropyLoss", "SplitToSequence", "StringConcat",
    "StringNormalizer", "StringSplit", "TfIdfVectorizer", "Unique",
})  # fmt: skip
OPERATORS_SOURCE = "onnx-tensorrt docs/operators.md, TensorRT 10.15"

# Operators that came later than 8.6, from onnx-tensorrt's changelog and the same table.
NEEDS: dict[str, str] = {
    "BlackmanWindow": "10.4", "HammingWindow": "10.4", "HannWindow": "10.4", "Hardmax": "9.2",
    "STFT": "10.5", "DeformConv": "10.1", "Gelu": "10.15", "Mish": "10.15",
    "Attention": "10.15", "RMSNormalization": "10.15", "RotaryEmbedding": "10.15",
}  # fmt: skip


def oldest_version(opset: int, operators: set[str]) -> str | None:
    """Give the oldest version that reads an opset and operators; None where none is known to."""
    found = next((version for version, newest in NEWEST_OPSETS.items() if opset <= newest), None)
    if found is None or operators & UNSUPPORTED:
        return None
    needed = [found, *(NEEDS[name] for name in operators if name in NEEDS)]
    return max(needed, key=lambda version: tuple(map(int, version.split("."))))
