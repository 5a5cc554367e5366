"""Peak memory of the heads' last layers and the loss, forward and backward: ours against the plain form.

Both sides start from the same bottlenecks, last layers (with weight norm), centres and matches, and end with gradients
of the student's bottlenecks and last layers. The plain form is what the published code does: logits of every view at
once, and for each (teacher, student) pair a gather of the teacher's rows, a log-softmax and a product, in float32.
The two must agree in losses and gradients before anything is printed.

On the CPU the peak is that of torch's own allocator, read from the profiler's record of every allocation and release,
kernels' temporaries included; on a GPU it is `torch.cuda.max_memory_allocated`. Inputs are not counted.

    python benchmarks/loss_memory.py                                     # 8192 prototypes, 16 images
    python benchmarks/loss_memory.py --device cuda --prototypes 65536 --batch 64 [--autocast]
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from glsd.losses.global_loss import global_representation_loss
from glsd.losses.local_loss import local_representation_loss
from glsd.losses.objective import geometric_matches
from glsd.losses.outputs import HeadPair
from glsd.matching import Matches
from glsd.models.head import Head

BOTTLENECK_DIM = 256
GROUPS = ((2, 7), (8, 3))  # (views, side of the dense grid): 2 x 49 + 8 x 9 student locations
TEMPERATURES = (0.1, 0.04)
WEIGHTS = (0.5, 0.5)  # of L_G and L_L


class Problem(NamedTuple):
    """Inputs of the loss; the lists hold one entry for each group of crops."""

    u_bar_s: list[Tensor]
    u_s: list[Tensor]
    u_bar_t: Tensor
    u_t: Tensor
    heads_s: list[Head]  # h-bar and h, of which only the last layers are used
    heads_t: list[Head]
    centers: list[Tensor]
    matches: list[Matches]

    @property
    def leaves(self) -> list[Tensor]:
        """What gradients are taken of."""
        return [*self.u_bar_s, *self.u_s, *(part for head in self.heads_s for part in head.last_layer_parameters())]


def problem(batch: int, prototypes: int, device: str) -> Problem:
    generator = torch.Generator().manual_seed(0)

    def unit(*shape: int) -> Tensor:
        return functional.normalize(torch.randn(*shape, BOTTLENECK_DIM, generator=generator), dim=-1).to(device)

    def boxes(views: int, low: float, high: float) -> Tensor:
        side = (low + (high - low) * torch.rand(batch, views, generator=generator)).sqrt() * 300
        corner = torch.rand(batch, views, 2, generator=generator) * (300 - side)[..., None]
        fields = (corner, corner + side[..., None], side[..., None].expand(batch, views, 2))
        flip = torch.randint(2, (batch, views, 1), generator=generator)
        return torch.cat((*fields, flip), -1).to(device)

    geos = [boxes(2, 0.4, 1.0), boxes(8, 0.05, 0.4)]
    grids = [(side, side) for _, side in GROUPS]
    torch.manual_seed(0)
    heads = [Head(1, 1, BOTTLENECK_DIM, prototypes, norm_last_layer=False).to(device) for _ in range(4)]
    made = Problem(
        u_bar_s=[unit(batch, views) for views, _ in GROUPS],
        u_s=[unit(batch, views, side, side) for views, side in GROUPS],
        u_bar_t=unit(batch, 2),
        u_t=unit(batch, 2, *grids[0]),
        heads_s=heads[:2],
        heads_t=heads[2:],
        centers=[0.01 * torch.randn(prototypes, generator=generator).to(device) for _ in range(2)],
        matches=[geometric_matches(geo, grid, geos[0], grids[0], 1.0) for geo, grid in zip(geos, grids, strict=True)],
    )
    for leaf in made.leaves:
        leaf.requires_grad_()
    for head in made.heads_t:
        head.requires_grad_(False)
    return made


def last_layers(heads: list[Head]) -> list[Tensor]:
    return [head.last_layer_weight() for head in heads]


def ours(given: Problem) -> Tensor:
    (bar_s, dense_s), (bar_t, dense_t) = last_layers(given.heads_s), last_layers(given.heads_t)
    u_bar_s = torch.cat(given.u_bar_s, 1)
    global_heads = HeadPair(bar_s, bar_t, given.centers[0], *TEMPERATURES)
    l_g = global_representation_loss(u_bar_s, given.u_bar_t, global_heads)
    dense_heads = HeadPair(dense_s, dense_t, given.centers[1], *TEMPERATURES)
    l_l = local_representation_loss(given.u_s, given.u_t, given.matches, dense_heads)
    return WEIGHTS[0] * l_g + WEIGHTS[1] * l_l


def plain(given: Problem) -> Tensor:
    tau_s, tau_t = TEMPERATURES
    bar_s, dense_s = last_layers(given.heads_s)
    logits_bar = [(u @ bar_s.T).float() / tau_s for u in given.u_bar_s]
    logits = [(u.flatten(2, 3) @ dense_s.T).float() / tau_s for u in given.u_s]
    with torch.no_grad():
        p_bar, p = (
            torch.softmax(((u @ layer.T).float() - center) / tau_t, -1)
            for u, layer, center in zip(
                (given.u_bar_t, given.u_t.flatten(2, 3)), last_layers(given.heads_t), given.centers, strict=True
            )
        )
    losses, num_pairs = [], 0
    for t in range(2):
        first_view = 0
        for group, match in enumerate(given.matches):
            for v in range(logits[group].shape[1]):
                if first_view + v == t:
                    continue
                num_pairs += 1
                global_term = -(p_bar[:, t] * functional.log_softmax(logits_bar[group][:, v], -1)).sum(-1).mean()
                index = match.k_star[:, v, t, :, None].expand(-1, -1, p.shape[-1])
                targets = p[:, t].gather(1, index)
                entropy = -(targets * functional.log_softmax(logits[group][:, v], -1)).sum(-1)
                local_term = (entropy * match.keep[:, v, t]).mean()
                losses.append(WEIGHTS[0] * global_term + WEIGHTS[1] * local_term)
            first_view += logits[group].shape[1]
    return torch.stack(losses).sum() / num_pairs


def step(side: Callable[[Problem], Tensor], given: Problem, autocast: bool) -> Tensor:
    for leaf in given.leaves:
        leaf.grad = None
    device = given.u_t.device.type
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        loss = side(given)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def peak_bytes(run: Callable[[], Tensor], given: Problem) -> int:
    for leaf in given.leaves:
        leaf.grad = None
    if given.u_t.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
    live = peak = 0
    for _, change in changes:
        live += change
        peak = max(peak, live)
    return peak


def seconds(run: Callable[[], Tensor], cuda: bool) -> float:
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def check_agreement(given: Problem, autocast: bool) -> None:
    found = []
    for side in (plain, ours):
        loss = step(side, given, autocast)
        found.append((loss, [leaf.grad for leaf in given.leaves if leaf.grad is not None]))
    (loss_plain, grads_plain), (loss_ours, grads_ours) = found
    errors = [float((b - a).norm() / a.norm()) for a, b in zip(grads_plain, grads_ours, strict=True)]
    loss_error = abs(float(loss_ours / loss_plain) - 1)
    print(f"relative difference: loss {loss_error:.1e}, gradients {max(errors):.1e} (largest of {len(errors)} tensors)")
    allowed = 2e-2 if autocast else 1e-5
    assert max(loss_error, *errors) < allowed, f"the two sides differ by more than {allowed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=16, help="images")
    parser.add_argument("--prototypes", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--autocast", action="store_true", help="matrix products of both sides in bfloat16")
    arguments = parser.parse_args()
    given = problem(arguments.batch, arguments.prototypes, arguments.device)
    cuda = arguments.device.startswith("cuda")
    machine = torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)"
    print(f"{arguments.prototypes} prototypes, {arguments.batch} images, torch {torch.__version__}, {machine}")
    check_agreement(given, arguments.autocast)
    sides: dict[str, Callable[[], Tensor]] = {
        "plain": lambda: step(plain, given, arguments.autocast),
        "ours": lambda: step(ours, given, arguments.autocast),
    }
    memory = {name: peak_bytes(run, given) for name, run in sides.items()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(arguments.repeats):
        for name, run in sides.items():
            times[name].append(seconds(run, cuda))
    for name in sides:
        print(f"{name:5s}  peak {memory[name] / 2**20:8.1f} MiB   median {statistics.median(times[name]):.3f} s")
    ratios = [a / b for a, b in zip(times["plain"], times["ours"], strict=True)]
    print(f"peak memory, plain / ours: x{memory['plain'] / memory['ours']:.1f}")
    print(f"time, plain / ours: x{statistics.median(ratios):.2f} (min {min(ratios):.2f}, max {max(ratios):.2f})")


if __name__ == "__main__":
    main()
