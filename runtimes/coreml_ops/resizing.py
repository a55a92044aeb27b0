"""Resizing the last axes, by the grids that the format's documentation gives."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from runtimes.coreml_ops.call import ArgumentError, Call, Operator

# The place in an input of a size for each place of an output of a size.
Grid = Callable[[int, int], Tensor]


def _default(size: int, out: int) -> Tensor:
    return _steps(out) * (size / out)


def _aligned(size: int, out: int) -> Tensor:
    return _steps(out) * ((size - 1) / max(1, out - 1))


def _aligned_or_middle(size: int, out: int) -> Tensor:
    return _aligned(size, out) if out > 1 else torch.full((1,), (size - 1) / 2, dtype=torch.double)


def _offset(size: int, out: int) -> Tensor:
    return (_steps(out) + 0.5) * (max(1, size - 1) / out)


def _half_pixels(size: int, out: int) -> Tensor:
    return (_steps(out) + 0.5) * (size / out) - 0.5


def _steps(out: int) -> Tensor:
    return torch.arange(out, dtype=torch.double)


_GRIDS: dict[str, Grid] = {
    "DEFAULT": _default,
    "STRICT_ALIGN_CORNERS": _aligned,
    "ALIGN_CORNERS": _aligned_or_middle,
    "OFFSET_CORNERS": _offset,
    "UNALIGN_CORNERS": _half_pixels,
}


def _interpolate(x: Tensor, axis: int, out: int, grid: Grid) -> Tensor:
    """Interpolate along one axis, between the two values beside each place."""
    size = x.shape[axis]
    if out == size and grid is not _offset:
        return x
    place = grid(size, out).clamp(0, size - 1)
    low = place.floor().long()
    share = (place - low).to(x.dtype).reshape([-1] + [1] * (x.dim() - axis - 1))
    high = (low + 1).clamp(max=size - 1)
    first, second = x.index_select(axis, low), x.index_select(axis, high)
    return first * (1 - share) + second * share


def _nearest(x: Tensor, axis: int, out: int) -> Tensor:
    size = x.shape[axis]
    return x.index_select(axis, torch.arange(out) * size // out)


def _grid_of(call: Call) -> Grid:
    mode = call.text("sampling_mode", "DEFAULT")
    if mode not in _GRIDS:
        raise ArgumentError(f"it has sampling_mode {mode!r}, which is not known")
    return _GRIDS[mode]


def _linearly(x: Tensor, sizes: list[int], grid: Grid) -> Tensor:
    for place, out in enumerate(sizes):
        x = _interpolate(x, x.dim() - len(sizes) + place, out, grid)
    return x


def _to_nearest(x: Tensor, sizes: list[int]) -> Tensor:
    for place, out in enumerate(sizes):
        x = _nearest(x, x.dim() - len(sizes) + place, out)
    return x


def _target_sizes(call: Call) -> list[int]:
    return [call.integer(f"target_size_{side}", 1) for side in ("height", "width")]


def _scaled_sizes(call: Call) -> list[int]:
    factors = [call.number(f"scale_factor_{side}", 1.0) for side in ("height", "width")]
    return [int(s * f) for s, f in zip(call.tensor().shape[-2:], factors, strict=True)]


def _upsample_bilinear(call: Call) -> Tensor:
    aligned = call.flag("align_corners", True)
    half = call.flag("half_pixel_centers", not aligned)
    if aligned and half:
        raise ArgumentError("it aligns both corners and centers")
    grid = _aligned if aligned else _half_pixels if half else _default
    return _linearly(call.tensor(), _scaled_sizes(call), grid)


def _resize(call: Call) -> Tensor:
    x, count = call.tensor(), call.integer("resized_dims")
    given = call.integers("shape")[-count:] if count else []
    sizes = [out or size for out, size in zip(given, x.shape[x.dim() - count :], strict=True)]
    mode = call.text("interpolation_mode", "LINEAR")
    if mode == "LINEAR":
        return _linearly(x, sizes, _grid_of(call))
    # The documentation does not say which way the other grids round.
    if mode != "NEAREST_NEIGHBOR" or call.text("sampling_mode", "DEFAULT") != "DEFAULT":
        raise ArgumentError("its way of taking the nearest value is not documented")
    return _to_nearest(x, sizes)


OPERATORS: dict[str, Operator] = {
    "upsample_nearest_neighbor": lambda call: _to_nearest(call.tensor(), _scaled_sizes(call)),
    "resize_nearest_neighbor": lambda call: _to_nearest(call.tensor(), _target_sizes(call)),
    "upsample_bilinear": _upsample_bilinear,
    "resize_bilinear": lambda call: _linearly(call.tensor(), _target_sizes(call), _grid_of(call)),
    "resize": _resize,
}
