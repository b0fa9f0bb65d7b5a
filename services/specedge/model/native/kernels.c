/* The kernels of one instruction set: compiled once for each, with the flags that select it and KERNELS as the name. */
#include "attention.h"
#include "gemm.h"
#include "rows.h"

#define TEXT_OF(name) #name
#define TEXT(name) TEXT_OF(name)

const Kernels KERNELS = {TEXT(KERNELS), multiply, normalize, rotate, attend, merge};
