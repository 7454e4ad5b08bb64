// Marks what kernels and launchers share.
#pragma once

#if defined(__CUDACC__)
#define LOGPI_HOST_DEVICE __host__ __device__
#else
#define LOGPI_HOST_DEVICE
#endif
