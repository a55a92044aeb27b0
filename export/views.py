"""Names of views: how a use reads a stored tensor."""

from __future__ import annotations

Permutation = tuple[int, ...]


def name_of_view(permutation: Permutation) -> str:
    """Name a permutation of axes: ``identity``, ``transpose`` or ``permute(...)``."""
    if permutation == tuple(range(len(permutation))):
        return "identity"
    if permutation == (1, 0):
        return "transpose"
    return f"permute({','.join(map(str, permutation))})"


def permutation_of_view(view: str, rank: int) -> Permutation:
    """Read a name of ``name_of_view`` back."""
    if view == "identity":
        return tuple(range(rank))
    if view == "transpose":
        return (1, 0)
    return tuple(int(axis) for axis in view.removeprefix("permute(").removesuffix(")").split(","))


def invert(permutation: Permutation) -> Permutation:
    """Invert a permutation of axes."""
    return tuple(sorted(range(len(permutation)), key=permutation.__getitem__))


def compose(first: Permutation, second: Permutation) -> Permutation:
    """Compose two transposes: the permutation of ``x.transpose(first).transpose(second)``."""
    return tuple(first[axis] for axis in second)
