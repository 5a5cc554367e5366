"""H(p, q) of Eq. 3: as written, and as training computes it, from bottlenecks and last layers without their logits.

Legend: R student rows x_s, T teacher rows x_t, bottleneck dimension D, I prototypes, J teacher terms of a student row.
With logits s = x_s W_s^T / tau_s, Eq. 3 is H(p, softmax(s)) = logsumexp(s) - p . s. The second term is linear in p and
in s, so p . s = x_s . c / tau_s with c = p W_s, the prototype that the teacher expects. A teacher row therefore meets
its student rows in D dimensions only, and the logits of both are made, used and dropped chunk by chunk, apart.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glsd.losses.outputs import HeadPair

CHUNK_BYTES_CPU = 8 * 2**20  # small enough for caches, and for the allocator to reuse
CHUNK_BYTES_ACCELERATOR = 2**30  # large enough for efficient products: 2048 rows of 65536 prototypes


def soft_cross_entropy(
    p: Float[Tensor, "*#batch prototypes"], log_q: Float[Tensor, "*#batch prototypes"]
) -> Float[Tensor, "*#batch"]:
    """Eq. 3: H(p, q) = - sum_i p(i) log q(i); leading axes broadcast."""
    return -(p * log_q).sum(-1)


def teacher_distribution(
    logits: Float[Tensor, "*batch prototypes"], center: Float[Tensor, " prototypes"], temperature: float
) -> Float[Tensor, "*batch prototypes"]:
    """p: the teacher's output, centred and sharpened (Sec. 4.2)."""
    return torch.softmax((logits - center) / temperature, dim=-1)


def student_log_distribution(
    logits: Float[Tensor, "*batch prototypes"], temperature: float
) -> Float[Tensor, "*batch prototypes"]:
    """Log q of the student."""
    return torch.log_softmax(logits / temperature, dim=-1)


def distillation_cross_entropy(
    x_s: Float[Tensor, "rows dim"],
    x_t: Float[Tensor, "teacher_rows dim"],
    heads: HeadPair,
    teacher_rows: Int[Tensor, "rows terms"],
    row_weights: Float[Tensor, "rows terms"],
    chunk_rows: int | None = None,
) -> Float[Tensor, ""]:
    """Sum over r, j of row_weights[r, j] * H(p of teacher row teacher_rows[r, j], q of student row r), Eq. 3.

    p and q are the outputs of `heads` for the bottlenecks x_t and x_s. Gradients reach x_s and `heads.weight_s` only,
    and are computed in the same pass as the loss. Under autocast, the scaled x_s and x_t and the weights are rounded to
    its dtype, and so are p and q in the gradients' products; logits and the terms of the loss are in float32. At most
    `chunk_rows` rows of logits exist at a time. By default these are as many as fit into a fixed number of bytes, but
    at least D / 2: with fewer, reading the last layer takes most of the time.
    """
    device = x_s.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else heads.weight_s.dtype
    if chunk_rows is None:
        budget = CHUNK_BYTES_CPU if device == "cpu" else CHUNK_BYTES_ACCELERATOR
        num_prototypes, dim = heads.weight_s.shape
        chunk_rows = max(1, dim // 2, budget // (8 * num_prototypes))  # logits and probabilities, in float32
    loss: Tensor = _DistillationCrossEntropy.apply(
        x_s, heads.weight_s, x_t.detach(), heads, teacher_rows, row_weights.detach(), chunk_rows, dtype
    )
    return loss


class _DistillationCrossEntropy(torch.autograd.Function):
    """The loss and, in the same pass over the logits, its gradients; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        x_s: Tensor,
        weight_s: Tensor,
        x_t: Tensor,
        heads: HeadPair,
        teacher_rows: Tensor,
        row_weights: Tensor,
        chunk_rows: int,
        dtype: torch.dtype,
    ) -> Tensor:
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        with torch.autocast(x_s.device.type, enabled=False):
            w_s = weight_s.to(dtype)
            x = (x_s.to(weight_s.dtype) / heads.tau_s).to(dtype)  # (R, D)
            grad_x = torch.empty_like(x, dtype=weight_s.dtype) if needs_x else None
            grad_weight = torch.zeros_like(weight_s) if needs_weight else None

            # A teacher row pulls the student's prototypes towards y, the weighted sum of the student rows it teaches.
            y = weight_s.new_zeros(x_t.shape)  # (T, D)
            for rows in _chunks(len(x), chunk_rows):
                taught = row_weights[rows, :, None] * x[rows, None, :]  # (chunk, J, D)
                y.index_add_(0, teacher_rows[rows].flatten(), taught.flatten(0, 1))
            expected = _expected_prototypes(x_t, y, heads, w_s, grad_weight, chunk_rows)  # c, (T, D)

            loss = weight_s.new_zeros(())
            for rows in _chunks(len(x), chunk_rows):
                weights = row_weights[rows]  # (chunk, J)
                total = weights.sum(1)
                logits = _product(x[rows], w_s.T)
                largest = logits.amax(1)
                q = torch.softmax(logits, dim=1)  # (chunk, I)
                del logits
                # The largest probability, which cannot underflow, gives the normaliser.
                logsumexp = largest - q.amax(1).log()
                q = q.to(dtype)
                pull = (weights[..., None] * expected[teacher_rows[rows]]).sum(1)  # (chunk, D)
                loss += (total * logsumexp).sum() - (pull * x[rows]).sum()
                if grad_x is not None:
                    grad_x[rows] = (total[:, None] * _product(q, w_s) - pull) / heads.tau_s
                if grad_weight is not None:
                    _add_product(grad_weight, q.T, (total[:, None] * x[rows]).to(dtype))
                del q
        ctx.x_dtype = x_s.dtype
        ctx.save_for_backward(grad_x, grad_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # not once_differentiable, which lets the second derivative pass as zero
            raise RuntimeError(
                "distillation_cross_entropy has no second derivative; call backward without create_graph"
            )
        grad_x, grad_weight = ctx.saved_tensors
        # In place: the gradient of the last layer is large. A second backward then raises, as the saved have changed.
        return (
            None if grad_x is None else grad_x.mul_(grad_loss).to(ctx.x_dtype),
            None if grad_weight is None else grad_weight.mul_(grad_loss),
            *(None,) * 6,
        )


def _expected_prototypes(
    x_t: Tensor, y: Tensor, heads: HeadPair, w_s: Tensor, grad_weight: Tensor | None, chunk_rows: int
) -> Tensor:
    """C = p W_s of each teacher row; what p adds to the gradient of W_s is added to `grad_weight`."""
    dtype = w_s.dtype
    w_t, shift = heads.weight_t.to(dtype), heads.center / heads.tau_t
    expected = torch.empty_like(y)
    for rows in _chunks(len(x_t), chunk_rows):
        scaled = (x_t[rows].to(heads.weight_t.dtype) / heads.tau_t).to(dtype)
        p = torch.softmax(_product(scaled, w_t.T).sub_(shift), dim=1)  # (chunk, I)
        high = p.to(dtype)
        expected[rows] = _product(high, w_s)
        if high.dtype != p.dtype:
            # The loss is linear in c: a second product adds what p lost by the rounding.
            expected[rows] += _product(p.sub_(high).to(dtype), w_s)
        if grad_weight is not None:
            _add_product(grad_weight, high.T, -y[rows].to(dtype))
        del p, high
    return expected


def _product(a: Tensor, b: Tensor) -> Tensor:
    """A b, in float32 where a and b are lower, without rounding the sums to their dtype."""
    if a.dtype.itemsize >= torch.float32.itemsize:
        return a @ b
    if a.device.type == "cuda":
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()  # CPUs have no such product


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Total += a b, without a copy of total where a and b have its dtype."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += _product(a, b)


def _chunks(num_rows: int, chunk_rows: int) -> Iterator[slice]:
    for start in range(0, num_rows, chunk_rows):
        yield slice(start, start + chunk_rows)
