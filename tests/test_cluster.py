"""What a cluster is refused for, whatever it is."""

import pytest

from ray_jobs.cluster import Resources, check_ranks
from ray_jobs.settings import JobSettings


def test_workers_of_one_run_do_not_share_a_gpu() -> None:
    resources = Resources(True, {"CPU": 1, "GPU": 0.5}, None, 0, "device")
    with pytest.raises(ValueError, match=r"2 workers of 0\.5 GPUs each would share GPUs, .* use --workers 1"):
        check_ranks(JobSettings(workers=2, gpus_per_worker=0.5), resources)
    check_ranks(JobSettings(workers=1, gpus_per_worker=0.5), resources)
    check_ranks(JobSettings(workers=2), resources)
