/* A CUDA driver library on a machine without a GPU: every call answers "not initialised". */

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
REFUSE(cuStreamSynchronize)
REFUSE(cuStreamCreate)
REFUSE(cuStreamDestroy_v2)
REFUSE(cuEventCreate)
REFUSE(cuEventDestroy_v2)
REFUSE(cuEventRecord)
REFUSE(cuEventQuery)
REFUSE(cuEventSynchronize)
REFUSE(cuLaunchHostFunc)
