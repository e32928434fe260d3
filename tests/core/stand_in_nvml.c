/* A stand-in for libnvidia-ml.so.1 with the real entry points. What it answers is read at every call from the file
   that NVML_STAND_IN names: lines of "key value". A key that is missing is "not supported"; KEY.error is the code to
   return instead. With -DOLD_DRIVER it lacks what came after driver 470. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9 };
typedef unsigned long long u64;
typedef struct { u64 total, free, used; } memory_v1;
typedef struct { unsigned version; u64 total, reserved, free, used; } memory_v2;
typedef struct { unsigned gpu, memory; } utilization;
typedef struct { unsigned pid; u64 used; unsigned gpu_instance, compute_instance; } process;

static int sessions = 0;

static int find(const char *key, char *value) {
    char line[256], name[128];
    FILE *file = fopen(getenv("NVML_STAND_IN"), "r");
    int found = 0;
    while (file && !found && fgets(line, sizeof line, file))
        found = sscanf(line, "%127s %127[^\n]", name, value) == 2 && strcmp(name, key) == 0;
    if (file) fclose(file);
    return found;
}

static int number(const char *key, u64 *value) {
    char text[128];
    if (!find(key, text)) return 0;
    *value = strtoull(text, NULL, 10);
    return 1;
}

/* The code to answer with: the session's, the GPU's, the field's. */
static int refused(int gpu, const char *field) {
    char key[128];
    u64 code;
    if (!sessions) return UNINITIALIZED;
    snprintf(key, sizeof key, "gpu%d.error", gpu);
    if (gpu >= 0 && number(key, &code)) return (int)code;
    snprintf(key, sizeof key, "gpu%d.%s.error", gpu, field);
    if (gpu >= 0 && number(key, &code)) return (int)code;
    return SUCCESS;
}

static int field(int gpu, const char *name, u64 *value) {
    char key[128];
    int code = refused(gpu, name);
    if (code) return code;
    snprintf(key, sizeof key, "gpu%d.%s", gpu, name);
    return number(key, value) ? SUCCESS : NOT_SUPPORTED;
}

static int text_field(int gpu, const char *name, char *out, unsigned length) {
    char key[128], value[128];
    int code = refused(gpu, name);
    if (code) return code;
    snprintf(key, sizeof key, "gpu%d.%s", gpu, name);
    if (!find(key, value)) return NOT_SUPPORTED;
    snprintf(out, length, "%s", value);
    return SUCCESS;
}

static int place(void *handle) { return (int)(size_t)handle - 1; }

int nvmlInitWithFlags(unsigned flags) {
    u64 code;
    (void)flags;
    if (number("init.error", &code)) return (int)code;
    sessions++;
    return SUCCESS;
}

int nvmlShutdown(void) {
    if (!sessions) return UNINITIALIZED;
    sessions--;
    return SUCCESS;
}

const char *nvmlErrorString(int code) { (void)code; return "an error of the stand-in"; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    u64 value = 0, code;
    if (!sessions) return UNINITIALIZED;
    if (number("count.error", &code)) return (int)code;
    number("count", &value);
    *count = (unsigned)value;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    int code = refused((int)index, "handle");
    *handle = (void *)(size_t)(index + 1);
    return code;
}

int nvmlDeviceGetUUID(void *gpu, char *out, unsigned length) { return text_field(place(gpu), "uuid", out, length); }
int nvmlDeviceGetName(void *gpu, char *out, unsigned length) { return text_field(place(gpu), "name", out, length); }

int nvmlDeviceGetMemoryInfo(void *gpu, memory_v1 *memory) {
    u64 reserved = 0;
    int code = field(place(gpu), "total", &memory->total);
    if (code) return code;
    field(place(gpu), "used", &memory->used);
    field(place(gpu), "reserved", &reserved);
    memory->used += reserved;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

#ifndef OLD_DRIVER
int nvmlDeviceGetMemoryInfo_v2(void *gpu, memory_v2 *memory) {
    int code = field(place(gpu), "total", &memory->total);
    if (code) return code;
    if (memory->version != (2u << 24 | sizeof *memory)) return 25;
    field(place(gpu), "used", &memory->used);
    field(place(gpu), "reserved", &memory->reserved);
    memory->free = memory->total - memory->used - memory->reserved;
    return SUCCESS;
}
#endif

int nvmlDeviceGetUtilizationRates(void *gpu, utilization *rates) {
    u64 value;
    int code = field(place(gpu), "utilisation", &value);
    if (!code) rates->gpu = (unsigned)value;
    return code;
}

int nvmlDeviceGetTemperature(void *gpu, unsigned sensor, unsigned *celsius) {
    u64 value;
    int code = field(place(gpu), "temperature", &value);
    (void)sensor;
    if (!code) *celsius = (unsigned)value;
    return code;
}

int nvmlDeviceGetPowerUsage(void *gpu, unsigned *milliwatts) {
    u64 value;
    int code = field(place(gpu), "power", &value);
    if (!code) *milliwatts = (unsigned)value;
    return code;
}

/* processes N; process.I.pid (0: the caller), process.I.used (missing: not available, as on Windows) */
static int processes(void *gpu, unsigned *room, process *out) {
    u64 count, value;
    char name[64];
    int code = field(place(gpu), "processes", &count);
    if (code) return code;
    if (count == 0) { *room = 0; return SUCCESS; }
    if (*room < count) { *room = (unsigned)count; return INSUFFICIENT_SIZE; }
    for (unsigned i = 0; i < count; i++) {
        snprintf(name, sizeof name, "process.%u.pid", i);
        code = field(place(gpu), name, &value);
        if (code) return code;
        out[i].pid = value ? (unsigned)value : (unsigned)getpid();
        snprintf(name, sizeof name, "process.%u.used", i);
        out[i].used = field(place(gpu), name, &value) == SUCCESS ? value : (u64)-1;
    }
    *room = (unsigned)count;
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v2(void *gpu, unsigned *room, process *out) { return processes(gpu, room, out); }
#ifndef OLD_DRIVER
int nvmlDeviceGetComputeRunningProcesses_v3(void *gpu, unsigned *room, process *out) { return processes(gpu, room, out); }
#endif
