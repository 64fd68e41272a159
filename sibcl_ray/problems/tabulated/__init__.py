"""A problem of arrays instead of a solver: inputs and labels that have been computed or measured.

A folder holds npz, HDF5 or Parquet files and ``problem.toml``. `load` checks all of it once. What it returns
names the data by their content and not by where they lie, and can be pickled and used without the folder,
except to give out rows. What HDF5's attributes say of numbers is done: they are unpacked by ``scale_factor`` and
``add_offset``, and refused by row where they are a ``_FillValue`` or ``missing_value`` or outside ``valid_range``. The
first axis are rows: a file of MATLAB's, whose axes come in reverse, is refused where that is not certain. Labels are
kept in float64 where float32 would lose digits of their deviation.

Of ``problem.toml`` only the name and [target] have to be there. All that it can say::

    name = "alloy-gap"                # of the problem; its results are found by it

    [target]                          # inputs with the expensive label; their first axis are rows
    file = "target.h5"                # in this folder: npz, Parquet or HDF5, as .nc (netCDF 4) and .mat (v7.3) are
    inputs = "run/epsilon"            # the array: npz key, HDF5 path or Parquet column
                                      # "shapes/*/epsilon": HDF5 datasets shapes/1/epsilon, shapes/2/epsilon, …
    labels = "run/gap"                # a label for each row, of any shape
    test = 200                        # so many rows are drawn by the study's seed and set apart ...
    # [test]                          # ... or the test has arrays of its own: file, inputs, labels

    [surrogate]                       # inputs with a cheaper label, if there are any
    file = "cheap.npz"
    inputs = "epsilon"
    labels = "gap"

    [unlabelled]                      # inputs without a label, if there are any
    file = "more.parquet"
    inputs = "epsilon"

    [input]
    units = "relative permittivity"
    periodic = true                   # inputs repeat along all axes; or a list, [true, false]. false if not said
    shape = [32, 32]                  # of a row, where rows are stored flat, as in lists of Parquet. Grids have one to
                                      # three axes: [100] is a vector or line, [16, 16, 16] a volume
    channels = "none"                 # or "first", "last": which axis of a row is no direction in space. It has to be
                                      # said of rows of three axes, which may be volumes
    offset = 1.0                      # networks see (input - offset) / scale; one number, or one a channel, or one for
                                      # each of the numbers of a vector, which has fewer than 32 and no symmetry.
    scale = 19.0                      # If neither is said: mean and deviation of the unlabelled or target inputs

    [label]
    units = "2 pi c / a"              # of labels, and of errors whose metric is not relative
    loss = "absolute"                 # or "squared", "log_absolute": what fitting makes small
    surrogate_loss = "log_absolute"   # the same as loss if not said
    metric = "relative"               # sum |error| / sum |label|, or "mean_relative", "absolute", "root_mean_square"
    offset = "surrogate mean"         # networks learn (label - offset) / scale, which should be of order one;
    scale = 0.1                       # 0 and 1 if not said. The offset is taken off before anything is rounded

    [symmetry]                        # what leaves the label unchanged
    translation = true                # by whole pixels, along all axes; or a list, [true, false]: along periodic ones
    point_group = true                # rotations and reflections of the square or cube; of a rectangle, box or line its
                                      # reflections, and exchanges of axes that are alike
    scaling = [1.0, 20.0]             # times any factor that keeps inputs in this range
"""

from sibcl_ray.problems.tabulated.problem import Tabulated
from sibcl_ray.problems.tabulated.tables import BadData
from sibcl_ray.problems.tabulated.validation import load

__all__ = ["BadData", "Tabulated", "load"]
