/* What libcuda.a has beside the driver's own functions. */
#pragma once
#include <stddef.h>

/* Opens the driver's library, libcuda.so.1, and connects every function of libcuda.a to it; answers null, or why it could not. Until it
   has been called, functions answer CUDA_ERROR_STUB_LIBRARY, and so do those afterwards that this driver lacks. Call it once. */
const char *driver_open(void);

/* The driver's cuInit. The function of that name in libcuda.a does nothing and succeeds, because gorgonia.org/cu calls it while a
   program starts and ends the program if it fails: a program must also run where there is no GPU. */
int driver_init(unsigned flags);
