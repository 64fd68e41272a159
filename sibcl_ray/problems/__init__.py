"""The problems by name. A new problem is one file and one row here."""

from sibcl_ray.problems.magnet import MagnetSign
from sibcl_ray.problems.photonic import PhotonicBands, PhotonicDOS, PhotonicGap
from sibcl_ray.problems.problem import Problem
from sibcl_ray.problems.schrodinger import Schrodinger2D, Schrodinger3D

PROBLEMS: dict[str, Problem] = {
    problem.name: problem
    for problem in (PhotonicDOS(), PhotonicBands(), PhotonicGap(), Schrodinger2D(), Schrodinger3D(), MagnetSign())
}
