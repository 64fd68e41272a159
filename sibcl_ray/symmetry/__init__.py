"""Groups that act on inputs and labels."""

from sibcl_ray.symmetry.groups import (
    EachChannel,
    Equivariance,
    Group,
    Moves,
    PointGroup,
    Scaling,
    Translations,
    augment,
    augment_labelled,
)
from sibcl_ray.symmetry.lattices import LatticePointGroup

__all__ = [
    "EachChannel",
    "Equivariance",
    "Group",
    "LatticePointGroup",
    "Moves",
    "PointGroup",
    "Scaling",
    "Translations",
    "augment",
    "augment_labelled",
]
