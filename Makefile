# lora-train in Go alone: go build ./cmd/lora-train. What is here is for NVIDIA GPUs; see scripts/cuda.
.PHONY: gpu gpu-tests kernels

# A program that also computes on NVIDIA GPUs. Building it needs a C compiler and CUDA's headers, which it fetches where no CUDA toolkit is
# installed; it runs on any machine, and on GPUs with NVIDIA's driver 525 or newer and cuBLAS.
gpu:
	eval "$$(scripts/cuda/env.sh)" && go build -tags gpu -o lora-train ./cmd/lora-train

# The tests that need a GPU, as programs to be carried to a machine that has one: each runs in the folder of its package, which it
# reads testdata from.
gpu-tests:
	eval "$$(scripts/cuda/env.sh)" && for package in kernels/cuda kernels/cuda/driver model train; do \
		go test -c -tags gpu -o "$$(basename $$package).test" ./$$package || exit 1; done

# The compiled kernels in kernels/cuda/compiled, which are part of the repository, after a change of a .cu file.
kernels:
	scripts/cuda/kernels.sh
