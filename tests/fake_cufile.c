/* GPUDirect Storage on a machine without: "device" memory is host memory, and streams are in order,
 * as every transfer ends within its call. FAKE_CUFILE_FAILS names the call that fails.
 *
 * Layouts: https://docs.nvidia.com/gpudirect-storage/api-reference-guide/index.html */

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

typedef struct { int err, cu_err; } Error;
typedef struct { int type; union { int fd; void *handle; } handle; const void *operations; } Description;
typedef struct {
    struct {
        unsigned major_version, minor_version;
        size_t poll_threshold_size, max_direct_io_size;
        unsigned status_flags, control_flags;
    } nvfs;
    unsigned flags, max_device_cache_size, per_buffer_cache_size, max_device_pinned_mem_size;
    unsigned max_batch_io_size, max_batch_io_timeout_msecs;
} Properties;

enum { REFUSED = 5003 };

static int fails(const char *name) {
    const char *failing = getenv("FAKE_CUFILE_FAILS");
    return failing != NULL && strcmp(failing, name) == 0;
}

static Error answer(const char *name) { return (Error){fails(name) ? REFUSED : 0, 0}; }

Error cuFileDriverOpen(void) { return answer("DriverOpen"); }
Error cuFileDriverClose(void) { return answer("DriverClose"); }
Error cuFileDriverClose_v2(void) { return answer("DriverClose"); }
Error cuFileGetVersion(int *version) { *version = 1110; return answer("GetVersion"); }

Error cuFileDriverGetProperties(Properties *properties) {
    memset(properties, 0, sizeof *properties);
    properties->nvfs.major_version = fails("nvidia-fs") ? 0 : 2;
    return answer("DriverGetProperties");
}

Error cuFileHandleRegister(void **handle, Description *description) {
    *handle = (void *)(long)(description->handle.fd + 1);
    return answer("HandleRegister");
}

void cuFileHandleDeregister(void *handle) { (void)handle; }

Error cuFileWriteAsync(void *handle, void *base, size_t *size, off_t *position, off_t *offset,
                       ssize_t *done, void *stream) {
    (void)stream;
    *done = pwrite((int)(long)handle - 1, (char *)base + *offset, *size, *position);
    return answer("WriteAsync");
}

Error cuFileReadAsync(void *handle, void *base, size_t *size, off_t *position, off_t *offset,
                      ssize_t *done, void *stream) {
    (void)stream;
    *done = pread((int)(long)handle - 1, (char *)base + *offset, *size, *position);
    if (fails("short read")) *done /= 2;
    return answer("ReadAsync");
}

/* KvikIO looks for these when it loads the library; nothing here calls them. */
#define UNUSED(name) Error name(void) { abort(); }

UNUSED(cuFileRead)
UNUSED(cuFileWrite)
UNUSED(cuFileBufRegister)
UNUSED(cuFileBufDeregister)
UNUSED(cuFileDriverSetPollMode)
UNUSED(cuFileDriverSetMaxCacheSize)
UNUSED(cuFileDriverSetMaxPinnedMemSize)
UNUSED(cuFileBatchIOSetUp)
UNUSED(cuFileBatchIOSubmit)
UNUSED(cuFileBatchIOGetStatus)
UNUSED(cuFileBatchIOCancel)
UNUSED(cuFileBatchIODestroy)
UNUSED(cuFileStreamRegister)
UNUSED(cuFileStreamDeregister)
