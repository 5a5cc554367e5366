"""What to say when a step does not fit into the device's memory."""

import re

import torch

from glsd.config import Config
from glsd.training.batch import Unit, to_device
from glsd.training.optimizer import gated_step
from glsd.training.state import TrainState
from glsd.training.step import unit_losses


def out_of_memory_advice(state: TrainState, unit: Unit, config: Config) -> str:
    """The largest unit that fits, found by trying smaller ones; the run is over, so the gradients are dropped."""
    device = next(state.student.parameters()).device
    size = config.data.unit_size
    # Another worker may have had room: nothing here may wait for it, as synchronised batch norm in training mode and
    # the gradient hooks of DistributedDataParallel would.
    state.replica = state.student
    state.student.eval()
    state.teacher.eval()
    for smaller in (divisor for divisor in range(size - 1, 0, -1) if size % divisor == 0):
        torch.cuda.empty_cache()
        if _fits(state, {key: array[:smaller] for key, array in unit.items()}, config, device):
            return (
                f"data.unit_size {size} does not fit into the memory of {device}; data.unit_size {smaller} does: start "
                "a run with it under another --out"
            )
    return f"not one image fits into the memory of {device}; choose a smaller model.backbone or model.num_prototypes"


def _fits(state: TrainState, unit: Unit, config: Config, device: torch.device) -> bool:
    """Whether a unit fits beside all gradients and moments, as every unit of a run but the first must.

    A function, so that what a unit that does not fit leaves behind is gone before the next is tried.
    """
    trained = [parameter for parameter in state.student.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        # The optimiser's moments are allocated at its first step; a closed gate changes nothing else.
        gated_step(state.optimizer, torch.zeros((), dtype=torch.bool, device=device))
        batch = to_device(unit, config.augment, device)
        losses, _ = unit_losses(state, batch, config.objective.teacher_temperature, config)
        torch.autograd.grad(losses.total, trained, allow_unused=True)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device's memory is at fault, in torch's words or in those of one of CUDA's libraries.

    >>> is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    True
    >>> is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    False
    """
    return isinstance(error, torch.OutOfMemoryError) or bool(re.search("out of memory|ALLOC_FAILED", str(error)))
