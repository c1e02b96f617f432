"""Checks of what feature networks and perceptual losses are given."""

from torch import Tensor

MIN_SIZE = 16  # pixels; on smaller pictures the deepest feature maps are one pixel


def check_pictures(x: Tensor, what: str = "x", *, in_range: bool = True) -> None:
    """Check that `x` is a batch of pictures: float (n, 3, h, w), sides >= 16, values in [-1, 1] if `in_range`.

    Raises TypeError for other dtypes and ValueError for other shapes and values; `what` names the argument.
    """
    if not x.is_floating_point():
        raise TypeError(f"{what} must be float in [-1, 1], got {x.dtype}; to_float() of ldmlab.data.images converts")
    if x.ndim != 4 or x.shape[1] != 3 or min(x.shape[2:]) < MIN_SIZE:
        raise ValueError(f"{what} must be (n, 3, h, w) with h, w >= {MIN_SIZE}, got {tuple(x.shape)}")
    if in_range and x.numel():
        low, high = x.detach().aminmax()
        if not (low >= -1.001 and high <= 1.001):  # also catches NaN
            raise ValueError(f"{what} must lie in [-1, 1], got values from {low:.3g} to {high:.3g}")


def check_pair(x: Tensor, y: Tensor, *, in_range: bool) -> None:
    """Check two batches of pictures of one shape; `y` may leave [-1, 1], as reconstructions do in training.

    Raises ValueError for different shapes, and as `check_pictures`.
    """
    if x.shape != y.shape:
        raise ValueError(f"x and y must have one shape, got {tuple(x.shape)} and {tuple(y.shape)}")
    check_pictures(x, in_range=in_range)
    check_pictures(y, "y", in_range=False)


def check_range_of_set(x: Tensor, y: Tensor) -> None:
    """ValueError where a whole set `y` seems to lie in [0, 1] beside true pictures `x`, or both do, and not in [-1, 1].

    [0, 1] passes as [-1, 1], and flatters distances. One picture may be bright everywhere, a set hardly: it is refused
    where it has no value below 0, some above and some below middle grey in [0, 1]; a collapsed model's is not.
    """
    for what, low, high in (("x", *x.aminmax()), ("y", *y.aminmax())):
        if 0 <= low < 0.5 < high <= 1:
            raise ValueError(f"{what} must lie in [-1, 1], and its values go from {low:.3g} to {high:.3g}: if these "
                             "are pictures in [0, 1], 2 * x - 1 converts them")
