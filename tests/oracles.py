"""The paper's equations in plain loops over Python floats: what the tensor code is held to.

A view is a list of seven numbers w_geo = [ul_x, ul_y, lr_x, lr_y, h, w, f]; a dense map is a list of its K locations in
reading order; a distribution is a list of I probabilities. Nothing here is shared with glsd.
"""

import math
from collections.abc import Sequence

Vector = Sequence[float]
Point = tuple[float, float]


def positions(geo: Vector, height: int, width: int) -> list[list[Point]]:
    """e: [row][column] -> (x, y), found by walking over the pixels of each patch and averaging their coordinates.

    The crop is thought of as resampled so finely that each patch holds whole samples; pixel i lies at coordinate i.
    """
    ul_x, ul_y, lr_x, lr_y, _, _, flip = geo
    samples = 8
    e = []
    for row in range(height):
        line = []
        for column in range(width):
            source_row = height - 1 - row if int(flip) in (2, 3) else row
            source_column = width - 1 - column if int(flip) in (1, 3) else column
            xs, ys = [], []
            for step in range(samples):
                fraction = (step + 0.5) / samples
                xs.append(ul_x - 0.5 + (source_column + fraction) * (lr_x - ul_x) / width)
                ys.append(ul_y - 0.5 + (source_row + fraction) * (lr_y - ul_y) / height)
            line.append((math.fsum(xs) / samples, math.fsum(ys) / samples))
        e.append(line)
    return e


def cell_diagonal(geo: Vector, height: int, width: int) -> float:
    """Distance between e_k and an adjacent diagonal e; where there is none, of the patch's own corners."""
    if height > 1 and width > 1:
        e = positions(geo, height, width)
        return math.dist(e[0][0], e[1][1])
    return math.hypot((geo[2] - geo[0]) / width, (geo[3] - geo[1]) / height)


def threshold(geo_s: Vector, grid_s: tuple[int, int], geo_t: Vector, grid_t: tuple[int, int]) -> float:
    """s: half of the larger diagonal."""
    return max(cell_diagonal(geo_s, *grid_s), cell_diagonal(geo_t, *grid_t)) / 2


def nearest(e: Sequence[Point], others: Sequence[Point]) -> list[tuple[int, float]]:
    """For each point (k*, d(k)): the first of the nearest others, and how far it is."""
    found = []
    for point in e:
        best, best_distance = 0, math.inf
        for j, other in enumerate(others):
            distance = math.dist(point, other)
            if distance < best_distance:
                best, best_distance = j, distance
        found.append((best, best_distance))
    return found


def most_similar(z: Sequence[Vector], others: Sequence[Vector]) -> list[int]:
    """For each feature k*, the first of the others with the largest cosine."""
    found = []
    for feature in z:
        best, best_cosine = 0, -math.inf
        for j, other in enumerate(others):
            cosine = _dot(feature, other) / (math.sqrt(_dot(feature, feature)) * math.sqrt(_dot(other, other)))
            if cosine > best_cosine:
                best, best_cosine = j, cosine
        found.append(best)
    return found


def softmax(logits: Vector) -> list[float]:
    largest = max(logits)
    exponentials = [math.exp(logit - largest) for logit in logits]
    total = math.fsum(exponentials)
    return [value / total for value in exponentials]


def teacher_head(u: Vector, weight: Sequence[Vector], center: Vector, temperature: float) -> list[float]:
    """Last layer, centring, sharpening."""
    return softmax([(_dot(row, u) - c) / temperature for row, c in zip(weight, center, strict=True)])


def student_head(u: Vector, weight: Sequence[Vector], temperature: float) -> list[float]:
    return softmax([_dot(row, u) / temperature for row in weight])


def cross_entropy(p: Vector, q: Vector) -> float:
    """Eq. 3."""
    return -math.fsum(p_i * math.log(q_i) for p_i, q_i in zip(p, q, strict=True))


def global_loss(p_t: Sequence[Vector], q_s: Sequence[Vector]) -> float:
    """Eq. 2 (the teacher sees all N views) and Eq. 8 (it sees two), for one image; p_t[t] and q_s[v] by view."""
    terms = [cross_entropy(p, q) for t, p in enumerate(p_t) for v, q in enumerate(q_s) if v != t]
    num_views = len(q_s)
    assert len(terms) == (num_views * (num_views - 1) if len(p_t) == num_views else 2 * (num_views - 2 + 1))
    return math.fsum(terms) / len(terms)


def pair_loss_code(p_t: Sequence[Vector], q_s: Sequence[Vector], k_star: Sequence[int], keep: Sequence[bool]) -> float:
    """Eq. 4 and 6 as the code has them: k runs over student locations, k_star[k] is a teacher location."""
    return math.fsum(cross_entropy(p_t[k_star[k]], q_s[k]) if keep[k] else 0.0 for k in range(len(q_s))) / len(q_s)


def pair_loss_paper(p_t: Sequence[Vector], q_s: Sequence[Vector], k_star: Sequence[int], keep: Sequence[bool]) -> float:
    """Eq. 4 and 6 as printed: k runs over teacher locations, k_star[k] is a student location."""
    return math.fsum(cross_entropy(p_t[k], q_s[k_star[k]]) if keep[k] else 0.0 for k in range(len(p_t))) / len(p_t)


def local_loss(pair_losses: Sequence[Sequence[float]]) -> float:
    """Eq. 5, 7 (the teacher sees all N views) and 9, 10 (it sees two), for one image and pair_losses[t][v]."""
    terms = [loss for t, row in enumerate(pair_losses) for v, loss in enumerate(row) if v != t]
    return math.fsum(terms) / len(terms)


def _dot(a: Vector, b: Vector) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))
