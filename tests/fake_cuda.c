/* A CUDA driver library on a machine without a GPU: every call answers "not initialised". With
 * WITH_STREAMS a stream can be waited for: its work has ended, see fake_cufile.c. */

enum { NOT_INITIALIZED = 3 };

#define REFUSE(name) int name(void) { return NOT_INITIALIZED; }

int cuDriverGetVersion(int *version) {
    *version = 12000;
    return 0;
}

REFUSE(cuInit)
REFUSE(cuMemHostAlloc)
REFUSE(cuMemFreeHost)
REFUSE(cuMemHostRegister_v2)
REFUSE(cuMemHostUnregister)
REFUSE(cuMemcpyHtoDAsync_v2)
REFUSE(cuMemcpyDtoHAsync_v2)
REFUSE(cuMemcpyAsync)
REFUSE(cuPointerGetAttribute)
REFUSE(cuPointerGetAttributes)
REFUSE(cuCtxCreate_v2)
REFUSE(cuCtxCreate_v4)
REFUSE(cuCtxDestroy_v2)
REFUSE(cuCtxPushCurrent_v2)
REFUSE(cuCtxPopCurrent_v2)
REFUSE(cuCtxGetCurrent)
REFUSE(cuCtxGetDevice)
REFUSE(cuMemGetAddressRange_v2)
REFUSE(cuGetErrorName)
REFUSE(cuGetErrorString)
REFUSE(cuDeviceGet)
REFUSE(cuDeviceGetCount)
REFUSE(cuDeviceGetAttribute)
REFUSE(cuDevicePrimaryCtxRetain)
REFUSE(cuDevicePrimaryCtxRelease_v2)
#ifdef WITH_STREAMS
int cuStreamSynchronize(void *stream) { return stream ? 0 : NOT_INITIALIZED; }
#else
REFUSE(cuStreamSynchronize)
#endif
REFUSE(cuStreamCreate)
REFUSE(cuStreamDestroy_v2)
REFUSE(cuEventCreate)
REFUSE(cuEventDestroy_v2)
REFUSE(cuEventRecord)
REFUSE(cuEventQuery)
REFUSE(cuEventSynchronize)
REFUSE(cuLaunchHostFunc)
