// Marks functions whose arithmetic is shared by the CPU and the CUDA twin of a kernel.
//
// Always inlined: a shared function that also stood alone would exist once for each instruction set
// level, and the linker would keep any one of them, also the one that an older machine cannot run.
#pragma once

#ifdef __CUDACC__
#define LGRECO_HD __host__ __device__ __forceinline__
#else
#define LGRECO_HD inline __attribute__((always_inline))
#endif
