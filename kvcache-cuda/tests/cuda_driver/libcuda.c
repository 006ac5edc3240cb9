/* A libcuda.so.1 for tests: two devices, one of them with a primary context that somebody else has made as well.
 *
 * It is strict where the real one is (contexts must be current and of the object, handles must be living), runs copies
 * when they are submitted, and writes every call to the file that FAKE_CUDA_LOG names. FAKE_CUDA_VERSION is the driver's
 * version, FAKE_CUDA_INIT the status of cuInit, FAKE_CUDA_HOST_ADDRESSES whether the device takes the host's. With
 * -DCUDA_HEADERS it compiles against NVIDIA's own headers, which then check each signature; else against the few types below.
 */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef CUDA_HEADERS
#include <cuda.h>
#include <cudaTypedefs.h>
#else
typedef enum { CUDA_SUCCESS = 0 } CUresult;
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef uint64_t cuuint64_t;
typedef int CUdevice_attribute;
typedef struct CUctx_st *CUcontext;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef int CUstreamCaptureStatus;
typedef int CUstreamCaptureMode;
typedef int CUdriverProcAddressQueryResult;
typedef struct { int type, id; } CUmemLocation;
typedef struct {
    int srcAccessOrder;
    CUmemLocation srcLocHint, dstLocHint;
    unsigned int flags;
} CUmemcpyAttributes;
#define cuDeviceTotalMem cuDeviceTotalMem_v2
#define cuDevicePrimaryCtxRelease cuDevicePrimaryCtxRelease_v2
#define cuCtxPushCurrent cuCtxPushCurrent_v2
#define cuCtxPopCurrent cuCtxPopCurrent_v2
#define cuStreamDestroy cuStreamDestroy_v2
#define cuEventDestroy cuEventDestroy_v2
#define cuMemAlloc cuMemAlloc_v2
#define cuMemFree cuMemFree_v2
#define cuMemHostGetDevicePointer cuMemHostGetDevicePointer_v2
#define cuMemHostRegister cuMemHostRegister_v2
#define cuGetProcAddress cuGetProcAddress_v2
#endif

enum { INVALID_VALUE = 1, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_CONTEXT = 201, INVALID_HANDLE = 400,
       NOT_FOUND = 500, NOT_READY = 600, STREAM_CAPTURE_UNSUPPORTED = 900 };
enum { DEVICES = 2, FIRST_DEVICE = 40, OBJECTS_MAX = 64 };
/* Where kernels see host memory: elsewhere than the CPU. */
#define MAPPED_AT 0x700000000000ull

struct CUctx_st { int device, references; };
struct CUstream_st { struct CUctx_st *context; int number, capturing, living; };
struct CUevent_st { struct CUctx_st *context; int number, queries_until_done, living; };
struct CUfunc_st { char name[64]; };
struct CUmod_st { int living; };

static struct CUctx_st contexts[DEVICES] = {{0, 0}, {1, 0}};
static struct CUstream_st streams[OBJECTS_MAX];
static struct CUevent_st events[OBJECTS_MAX];
static struct CUfunc_st functions[OBJECTS_MAX];
static struct CUmod_st module;
static int stream_count, event_count, function_count;
static struct { char *base; size_t bytes; } pinned[OBJECTS_MAX];
static __thread struct CUctx_st *stack[8];
static __thread int depth;
static char failing[64];
static int failing_status;

static void record(const char *format, ...) {
    const char *path = getenv("FAKE_CUDA_LOG");
    FILE *file = path ? fopen(path, "a") : NULL;
    if (!file) return;
    va_list arguments;
    va_start(arguments, format);
    vfprintf(file, format, arguments);
    va_end(arguments);
    fputc('\n', file);
    fclose(file);
}

static long setting(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text ? atol(text) : otherwise;
}

/* For tests: the next call of this function returns this status and does nothing. */
void fake_fail(const char *function, int status) {
    snprintf(failing, sizeof failing, "%s", function);
    failing_status = status;
}

#define INJECT(function) \
    if (!strcmp(failing, function)) { failing[0] = 0; return (CUresult)failing_status; }

/* Whether another thread records a graph in the mode "global", whether it still can, and this thread's own mode. */
static int recording, recording_is_broken;
static __thread int mode_of_thread;
enum { MODE_GLOBAL = 0, MODE_RELAXED = 2 };

/* For tests: another thread begins to record, or ends; whether anything has broken its graph. */
void fake_record(int begin) {
    recording = begin;
    if (begin) recording_is_broken = 0;
}
int fake_recording_is_broken(void) { return recording_is_broken; }

CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode) {
    int before = mode_of_thread;
    if ((int)*mode < MODE_GLOBAL || (int)*mode > MODE_RELAXED) return (CUresult)INVALID_VALUE;
    mode_of_thread = (int)*mode;
    *mode = (CUstreamCaptureMode)before;
    return CUDA_SUCCESS;
}

/* What no graph can hold. The real driver does not document which calls these are, so this one takes all that might be. */
#define UNRECORDABLE() \
    if (recording && mode_of_thread == MODE_GLOBAL) { \
        recording_is_broken = 1; \
        return (CUresult)STREAM_CAPTURE_UNSUPPORTED; \
    }

static struct CUctx_st *current(void) { return depth ? stack[depth - 1] : NULL; }

#define NEED(condition, status) if (!(condition)) return (CUresult)(status)

/* A stream's context: that of the thread for the default stream. */
static struct CUctx_st *context_of(CUstream stream) {
    if ((uintptr_t)stream <= 2) return current();
    if (stream < streams || stream >= streams + stream_count || !stream->living) return NULL;
    return stream->context;
}

static int number_of(CUstream stream) { return (uintptr_t)stream <= 2 ? -(int)(uintptr_t)stream : stream->number; }

CUresult cuGetErrorName(CUresult status, const char **name) {
    switch ((int)status) {
    case 1: *name = "CUDA_ERROR_INVALID_VALUE"; return CUDA_SUCCESS;
    case 2: *name = "CUDA_ERROR_OUT_OF_MEMORY"; return CUDA_SUCCESS;
    case 100: *name = "CUDA_ERROR_NO_DEVICE"; return CUDA_SUCCESS;
    case 201: *name = "CUDA_ERROR_INVALID_CONTEXT"; return CUDA_SUCCESS;
    case 209: *name = "CUDA_ERROR_NO_BINARY_FOR_GPU"; return CUDA_SUCCESS;
    case 400: *name = "CUDA_ERROR_INVALID_HANDLE"; return CUDA_SUCCESS;
    case 600: *name = "CUDA_ERROR_NOT_READY"; return CUDA_SUCCESS;
    case 900: *name = "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"; return CUDA_SUCCESS;
    case 803: *name = "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"; return CUDA_SUCCESS;
    default: *name = NULL; return (CUresult)INVALID_VALUE;
    }
}

CUresult cuInit(unsigned int flags) {
    NEED(flags == 0, INVALID_VALUE);
    return (CUresult)setting("FAKE_CUDA_INIT", 0);
}

CUresult cuDriverGetVersion(int *version) {
    *version = (int)setting("FAKE_CUDA_VERSION", 13000);
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int *count) {
    *count = (int)setting("FAKE_CUDA_DEVICES", DEVICES);
    return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    NEED(ordinal >= 0 && ordinal < DEVICES, INVALID_DEVICE);
    *device = FIRST_DEVICE + ordinal;
    return CUDA_SUCCESS;
}

#define NEED_DEVICE(device) NEED((device) >= FIRST_DEVICE && (device) < FIRST_DEVICE + DEVICES, INVALID_DEVICE)

CUresult cuDeviceGetName(char *name, int bytes, CUdevice device) {
    NEED_DEVICE(device);
    snprintf(name, (size_t)bytes, "Fake GPU %d", device - FIRST_DEVICE);
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetPCIBusId(char *address, int bytes, CUdevice device) {
    NEED_DEVICE(device);
    snprintf(address, (size_t)bytes, "0000:%dB:00.0", device - FIRST_DEVICE + 1);
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    NEED_DEVICE(device);
    switch ((int)attribute) {
    case 16: *value = 132; return CUDA_SUCCESS; /* multiprocessors */
    case 75: *value = 9; return CUDA_SUCCESS;   /* compute capability, major */
    case 76: *value = 0; return CUDA_SUCCESS;   /* and minor */
    case 91: /* whether the device takes host addresses of registered memory */
        *value = (int)setting("FAKE_CUDA_HOST_ADDRESSES", 1);
        return CUDA_SUCCESS;
    default: return (CUresult)INVALID_VALUE;
    }
}

CUresult cuDeviceTotalMem(size_t *bytes, CUdevice device) {
    NEED_DEVICE(device);
    *bytes = (size_t)141 << 30;
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    UNRECORDABLE();
    INJECT("cuDevicePrimaryCtxRetain");
    NEED_DEVICE(device);
    *context = &contexts[device - FIRST_DEVICE];
    (*context)->references++;
    record("retain %d: %d", (*context)->device, (*context)->references);
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease(CUdevice device) {
    UNRECORDABLE();
    NEED_DEVICE(device);
    NEED(contexts[device - FIRST_DEVICE].references > 0, INVALID_CONTEXT);
    contexts[device - FIRST_DEVICE].references--;
    record("release %d: %d", device - FIRST_DEVICE, contexts[device - FIRST_DEVICE].references);
    return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *context) {
    *context = current();
    return CUDA_SUCCESS;
}

CUresult cuCtxPushCurrent(CUcontext context) {
    NEED(context && context->references > 0 && depth < 8, INVALID_CONTEXT);
    stack[depth++] = context;
    record("push %d", context->device);
    return CUDA_SUCCESS;
}

CUresult cuCtxPopCurrent(CUcontext *context) {
    NEED(depth > 0, INVALID_CONTEXT);
    *context = stack[--depth];
    record("pop %d", (*context)->device);
    return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice *device) {
    NEED(current(), INVALID_CONTEXT);
    *device = FIRST_DEVICE + current()->device;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    NEED(current(), INVALID_CONTEXT);
    *least = 0;
    *greatest = -5;
    return CUDA_SUCCESS;
}

CUresult cuStreamCreateWithPriority(CUstream *stream, unsigned int flags, int priority) {
    UNRECORDABLE();
    INJECT("cuStreamCreateWithPriority");
    NEED(current() && stream_count < OBJECTS_MAX, INVALID_CONTEXT);
    *stream = &streams[stream_count];
    **stream = (struct CUstream_st){current(), stream_count, 0, 1};
    record("stream %d: context %d flags %u priority %d", stream_count++, current()->device, flags, priority);
    return CUDA_SUCCESS;
}

CUresult cuStreamDestroy(CUstream stream) {
    UNRECORDABLE();
    NEED((uintptr_t)stream > 2 && context_of(stream), INVALID_HANDLE);
    stream->living = 0;
    record("stream %d destroyed", stream->number);
    return CUDA_SUCCESS;
}

/* For tests: a stream of the engine's. */
CUstream fake_engine_stream(int device, int capturing) {
    streams[stream_count] = (struct CUstream_st){&contexts[device], stream_count, capturing, 1};
    return &streams[stream_count++];
}

CUresult cuStreamGetCtx(CUstream stream, CUcontext *context) {
    NEED(context_of(stream), INVALID_CONTEXT);
    *context = context_of(stream);
    return CUDA_SUCCESS;
}

CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status) {
    INJECT("cuStreamIsCapturing");
    NEED(context_of(stream), INVALID_HANDLE);
    *status = (CUstreamCaptureStatus)((uintptr_t)stream > 2 ? stream->capturing : 0);
    return CUDA_SUCCESS;
}

#define NEED_EVENT(event) \
    NEED((event) >= events && (event) < events + event_count && (event)->living, INVALID_HANDLE)

CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned int flags) {
    NEED(current(), INVALID_CONTEXT);
    NEED_EVENT(event);
    NEED(context_of(stream), INVALID_HANDLE);
    NEED(flags == 0, INVALID_VALUE);
    record("stream %d waits for event %d", number_of(stream), event->number);
    return CUDA_SUCCESS;
}

CUresult cuEventCreate(CUevent *event, unsigned int flags) {
    UNRECORDABLE();
    NEED(current() && event_count < OBJECTS_MAX, INVALID_CONTEXT);
    *event = &events[event_count];
    **event = (struct CUevent_st){current(), event_count, 0, 1};
    record("event %d: context %d flags %u", event_count++, current()->device, flags);
    return CUDA_SUCCESS;
}

CUresult cuEventDestroy(CUevent event) {
    UNRECORDABLE();
    NEED_EVENT(event);
    event->living = 0;
    record("event %d destroyed", event->number);
    return CUDA_SUCCESS;
}

CUresult cuEventRecord(CUevent event, CUstream stream) {
    NEED(current(), INVALID_CONTEXT);
    NEED_EVENT(event);
    NEED(context_of(stream) == event->context, INVALID_HANDLE);
    event->queries_until_done = 1;
    record("event %d recorded in stream %d", event->number, number_of(stream));
    return CUDA_SUCCESS;
}

#ifndef WITHOUT_EVENT_QUERY
CUresult cuEventQuery(CUevent event) {
    UNRECORDABLE();
    INJECT("cuEventQuery");
    NEED(current(), INVALID_CONTEXT);
    NEED_EVENT(event);
    return event->queries_until_done-- > 0 ? (CUresult)NOT_READY : CUDA_SUCCESS;
}
#endif

CUresult cuEventSynchronize(CUevent event) {
    UNRECORDABLE();
    NEED(current(), INVALID_CONTEXT);
    NEED_EVENT(event);
    event->queries_until_done = 0;
    record("event %d synchronized", event->number);
    return CUDA_SUCCESS;
}

CUresult cuMemAlloc(CUdeviceptr *address, size_t bytes) {
    UNRECORDABLE();
    INJECT("cuMemAlloc");
    NEED(current(), INVALID_CONTEXT);
    NEED(bytes, INVALID_VALUE);
    *address = (CUdeviceptr)(uintptr_t)aligned_alloc(256, (bytes + 255) & ~(size_t)255);
    record("device memory of %zu", bytes);
    return CUDA_SUCCESS;
}

CUresult cuMemFree(CUdeviceptr address) {
    UNRECORDABLE();
    NEED(current(), INVALID_CONTEXT);
    free((void *)(uintptr_t)address);
    record("device memory freed");
    return CUDA_SUCCESS;
}

static int pin(char *base, size_t bytes) {
    for (int i = 0; i < OBJECTS_MAX; i++)
        if (!pinned[i].base) {
            pinned[i].base = base;
            pinned[i].bytes = bytes;
            return 1;
        }
    return 0;
}

static int unpin(char *base) {
    for (int i = 0; i < OBJECTS_MAX; i++)
        if (pinned[i].base == base) {
            pinned[i].base = NULL;
            return 1;
        }
    return 0;
}

CUresult cuMemHostAlloc(void **host, size_t bytes, unsigned int flags) {
    UNRECORDABLE();
    INJECT("cuMemHostAlloc");
    NEED(current(), INVALID_CONTEXT);
    *host = aligned_alloc(4096, (bytes + 4095) & ~(size_t)4095);
    pin(*host, bytes);
    record("host memory of %zu flags %u", bytes, flags);
    return CUDA_SUCCESS;
}

CUresult cuMemFreeHost(void *host) {
    UNRECORDABLE();
    NEED(current(), INVALID_CONTEXT);
    NEED(unpin(host), INVALID_VALUE);
    free(host);
    record("host memory freed");
    return CUDA_SUCCESS;
}

CUresult cuMemHostRegister(void *host, size_t bytes, unsigned int flags) {
    UNRECORDABLE();
    INJECT("cuMemHostRegister");
    NEED(current(), INVALID_CONTEXT);
    NEED(pin(host, bytes), INVALID_VALUE);
    record("registered %zu flags %u", bytes, flags);
    return CUDA_SUCCESS;
}

CUresult cuMemHostUnregister(void *host) {
    UNRECORDABLE();
    NEED(current(), INVALID_CONTEXT);
    NEED(unpin(host), INVALID_VALUE);
    record("unregistered");
    return CUDA_SUCCESS;
}

CUresult cuMemHostGetDevicePointer(CUdeviceptr *address, void *host, unsigned int flags) {
    UNRECORDABLE();
    INJECT("cuMemHostGetDevicePointer");
    NEED(current(), INVALID_CONTEXT);
    NEED(flags == 0, INVALID_VALUE);
    for (int i = 0; i < OBJECTS_MAX; i++)
        if (pinned[i].base && pinned[i].base <= (char *)host && (char *)host < pinned[i].base + pinned[i].bytes) {
            *address = (CUdeviceptr)(uintptr_t)host + MAPPED_AT;
            return CUDA_SUCCESS;
        }
    return (CUresult)INVALID_VALUE;
}

CUresult cuMemcpyAsync(CUdeviceptr dst, CUdeviceptr src, size_t bytes, CUstream stream) {
    UNRECORDABLE();
    INJECT("cuMemcpyAsync");
    NEED(current(), INVALID_CONTEXT);
    NEED(context_of(stream) == current(), INVALID_HANDLE);
    memcpy((void *)(uintptr_t)dst, (void *)(uintptr_t)src, bytes);
    record("copy of %zu in stream %d", bytes, number_of(stream));
    return CUDA_SUCCESS;
}

static CUresult copy_batch(const char *version, CUdeviceptr *dsts, CUdeviceptr *srcs, size_t *sizes, size_t count,
                           CUmemcpyAttributes *attributes, size_t *firsts, size_t attribute_count, size_t *wrong,
                           CUstream stream) {
    INJECT("cuMemcpyBatchAsync");
    if (wrong) *wrong = SIZE_MAX;
    NEED(current(), INVALID_CONTEXT);
    NEED((uintptr_t)stream > 2 && context_of(stream) == current(), INVALID_HANDLE);
    NEED(attribute_count == 1 && firsts[0] == 0 && count > 0, INVALID_VALUE);
    int order = (int)attributes[0].srcAccessOrder;
    NEED(order == 1 || order == 3, INVALID_VALUE);
    NEED(attributes[0].srcLocHint.type == 0 && attributes[0].dstLocHint.type == 0 && !attributes[0].flags, INVALID_VALUE);
    for (size_t i = 0; i < count; i++) {
        if (!sizes[i]) {
            if (wrong) *wrong = i;
            return (CUresult)INVALID_VALUE;
        }
        memcpy((void *)(uintptr_t)dsts[i], (void *)(uintptr_t)srcs[i], sizes[i]);
    }
    record("batch of %zu by CUDA %s, order %d, in stream %d", count, version, order, number_of(stream));
    return CUDA_SUCCESS;
}

static CUresult copy_batch_12080(CUdeviceptr *dsts, CUdeviceptr *srcs, size_t *sizes, size_t count,
                                 CUmemcpyAttributes *attributes, size_t *firsts, size_t attribute_count, size_t *wrong,
                                 CUstream stream) {
    NEED(wrong && *wrong == SIZE_MAX, INVALID_VALUE);
    return copy_batch("12.8", dsts, srcs, sizes, count, attributes, firsts, attribute_count, wrong, stream);
}

static CUresult copy_batch_13000(CUdeviceptr *dsts, CUdeviceptr *srcs, size_t *sizes, size_t count,
                                 CUmemcpyAttributes *attributes, size_t *firsts, size_t attribute_count,
                                 CUstream stream) {
    return copy_batch("13.0", dsts, srcs, sizes, count, attributes, firsts, attribute_count, NULL, stream);
}

#ifdef CUDA_HEADERS
static const PFN_cuMemcpyBatchAsync_v12080 signature_12080 = copy_batch_12080;
static const PFN_cuMemcpyBatchAsync_v13000 signature_13000 = copy_batch_13000;
#else
#define signature_12080 copy_batch_12080
#define signature_13000 copy_batch_13000
#endif

CUresult cuGetProcAddress(const char *name, void **function, int version, cuuint64_t flags,
                          CUdriverProcAddressQueryResult *status) {
    (void)status;
    *function = NULL;
    NEED(flags == 1, INVALID_VALUE);
    /* Nobody promises that a driver refuses versions newer than itself: this one answers with its newest. */
    if (version > setting("FAKE_CUDA_VERSION", 13000)) version = (int)setting("FAKE_CUDA_VERSION", 13000);
    if (!strcmp(name, "cuMemcpyBatchAsync"))
        *function = version >= 13000   ? (void *)signature_13000
                    : version >= 12080 ? (void *)signature_12080
                                       : NULL;
    return CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule *loaded, const void *image) {
    UNRECORDABLE();
    INJECT("cuModuleLoadData");
    NEED(current(), INVALID_CONTEXT);
    NEED(*(const uint32_t *)image == 0xBA55ED50u && (uintptr_t)image % 16 == 0, INVALID_VALUE);
    module.living = 1;
    *loaded = &module;
    record("image loaded");
    return CUDA_SUCCESS;
}

CUresult cuModuleUnload(CUmodule loaded) {
    UNRECORDABLE();
    NEED(current(), INVALID_CONTEXT);
    NEED(loaded == &module && module.living, INVALID_HANDLE);
    module.living = 0;
    record("image unloaded");
    return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction *function, CUmodule loaded, const char *name) {
    INJECT("cuModuleGetFunction");
    NEED(loaded == &module && module.living, INVALID_HANDLE);
    NEED(!strncmp(name, "kvcache_", 8) && function_count < OBJECTS_MAX, NOT_FOUND);
    *function = &functions[function_count++];
    snprintf((*function)->name, sizeof (*function)->name, "%s", name);
    return CUDA_SUCCESS;
}

#ifndef WITHOUT_FUNCTION_LOAD
CUresult cuFuncLoad(CUfunction function) {
    UNRECORDABLE();
    NEED(function >= functions && function < functions + function_count, INVALID_HANDLE);
    record("%s loaded", function->name);
    return CUDA_SUCCESS;
}
#endif

CUresult cuLaunchKernel(CUfunction function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
                        unsigned int block_x, unsigned int block_y, unsigned int block_z, unsigned int shared_bytes,
                        CUstream stream, void **arguments, void **extra) {
    INJECT("cuLaunchKernel");
    NEED(current(), INVALID_CONTEXT);
    NEED(function >= functions && function < functions + function_count, INVALID_HANDLE);
    NEED(context_of(stream) == current(), INVALID_HANDLE);
    NEED(!extra, INVALID_VALUE);
    /* Each of the kernels takes one structure, which begins with an address. */
    uint64_t table;
    memcpy(&table, arguments[0], sizeof table);
    record("%s of %llx: grid %u %u %u, block %u %u %u, shared %u, stream %d", function->name,
           (unsigned long long)table, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes,
           number_of(stream));
    return CUDA_SUCCESS;
}
