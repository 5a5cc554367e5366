# One image for every node of cluster.yaml, docs/cluster-gcp.yaml and kubernetes/rayjob.yaml: Ray's own image of the
# pinned version, and the wheel of this folder with what it needs. `docker build --tag glsd .` makes it.
#
# Ray's CPU image, also for nodes with GPUs: torch brings the libraries of CUDA, the node brings the driver. Ray's -gpu
# image is NVIDIA's developer image of CUDA 12 (Ray's ray-images.yaml), gigabytes that torch does not use.
# Not confirmed, as no registry was within reach: that this tag exists. Ray's build makes tags of this form.
FROM rayproject/ray:2.60.0-py311-cpu AS ray

FROM ray AS wheel
COPY pyproject.toml README.md LICENSE /tmp/glsd/
COPY glsd /tmp/glsd/glsd
COPY ray_jobs /tmp/glsd/ray_jobs
RUN cp -r /tmp/glsd /tmp/source \
    && pip wheel --no-cache-dir --no-deps --wheel-dir /tmp/wheels /tmp/source

FROM ray
COPY --from=wheel /tmp/wheels /tmp/wheels
# The versions stand beside the wheel, so that pip keeps the Ray of the image and installs one torch, or fails. Ray's
# image has no torch (Ray's python/deplocks/base_deps). This one is built for CUDA 13 and needs driver 580 or newer; the
# package index has none for CUDA 12.
RUN pip install --no-cache-dir \
    "ray[data,default,train,tune]==2.60.0" torch==2.14.1 torchvision==0.29.1 /tmp/wheels/*.whl
# What was only read of Ray's image fails here, if it is not so, and not on a cluster.
RUN python -c "import boto3, googleapiclient, ray, torch; assert ray.__version__ == '2.60.0' and torch.version.cuda" \
    && glsd --version
