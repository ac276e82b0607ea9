//! Tensors, kernels and models on the devices of a worker.
