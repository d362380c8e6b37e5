# An image with cmjax installed, with the versions of launch/constraints.txt.
#   docker build -t cmjax .                                       for CPUs
#   docker build -t cmjax --build-arg EXTRAS=cuda,stores .        for NVIDIA's GPUs
#   docker build -t cmjax --build-arg EXTRAS=tpu,stores .         for Cloud TPUs
#   docker run --rm --gpus=all --shm-size=8g -v "$PWD/runs:/app/runs" cmjax \
#     train --config=digits_teacher --workdir=runs/digits
# CUDA comes from PyPI, with JAX's plugin; the host brings the driver (525 or newer) and NVIDIA's
# container toolkit. launch/jobset.sh takes the image to GKE.
FROM python:3.12-slim
ARG EXTRAS=stores
WORKDIR /app
COPY . .
RUN pip install --no-cache-dir -c launch/constraints.txt -e ".[$EXTRAS]"
ENTRYPOINT ["cmjax"]
CMD ["--help"]
