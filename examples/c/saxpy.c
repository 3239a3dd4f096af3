// An engine in C links the runtime: it describes its kernel, sends every launch through a session, and the runtime decides on how many SMs, and
// on which, it runs. The same engine in Rust is examples/02_link_the_runtime.rs.
//
//     cargo build --release -p smidgen-capi
//     gcc -std=c11 -Iinclude examples/c/saxpy.c -o saxpy -Ltarget/release -lsmidgen_capi -Wl,-rpath,$PWD/target/release
//     CUDA_DEVICE_MAX_CONNECTIONS=32 ./saxpy examples/saxpy.ptx
//
// Runs on the GPU if there is one, else on the simulator, which takes the same calls and computes nothing.
#include <stdio.h>
#include <stdlib.h>

#include "smidgen.h"

// Elements of each vector: 1 GB in all.
#define COUNT (1u << 27)
// Elements in a tile; saxpy.cu has the same.
#define TILE 4096u

// The kernel's first parameter, as saxpy.cu declares it. The second one, smidgen_tiles, comes from the runtime.
typedef struct saxpy_args {
    uint64_t x, y;
    uint32_t count;
    float a;
} saxpy_args;

// An engine would unwind its request here; an example can only say what happened.
static void check(smidgen_status status) {
    if (status == SMIDGEN_STATUS_OK) return;
    fprintf(stderr, "%s: %s\n", smidgen_status_name(status), smidgen_last_error());
    exit(1);
}

static void log_line(int32_t level, const char *message, void *user) {
    (void)user;
    fprintf(stderr, "smidgen[%d]: %s\n", level, message);
}

// The GPU with the engine's kernels on it, or the simulator.
static smidgen_device *open_device(const char *ptx) {
    smidgen_device *device = NULL;
    if (smidgen_device_open_cuda(0, &device) != SMIDGEN_STATUS_OK) {
        fprintf(stderr, "%s\n", smidgen_last_error());
        check(smidgen_device_open_simulator(NULL, 0, &device));
        return device;
    }
    FILE *file = fopen(ptx, "rb");
    static char image[1 << 20];
    size_t size = file ? fread(image, 1, sizeof image, file) : 0;
    if (file) fclose(file);
    if (size == 0) {
        fprintf(stderr, "%s: cannot be read; give the path of the repository's examples/saxpy.ptx as first argument\n", ptx);
        exit(1);
    }
    check(smidgen_device_load(device, image, size));
    return device;
}

// A tenant that will allocate so many bytes through its session: they are kept for it until then.
static smidgen_tenant admit(smidgen_runtime *runtime, const char *name, uint64_t memory_bytes) {
    smidgen_tenant_spec spec = {.struct_size = sizeof spec, .tenant_class = SMIDGEN_CLASS_THROUGHPUT, .name = name, .memory_bytes = memory_bytes};
    smidgen_tenant tenant;
    check(smidgen_runtime_admit(runtime, &spec, &tenant));
    return tenant;
}

// How saxpy is launched on so many SMs: persistent, no more blocks than fit on them, which take tiles until none is left. `grid = 0` would say
// the same; a kernel with several tile shapes would choose one here.
static int32_t configure(uint32_t sms, smidgen_launch *launch, void *user) {
    (void)user;
    uint32_t resident = sms * launch->blocks_per_sm;
    launch->grid = launch->tiles < resident ? launch->tiles : resident;
    return 0;
}

// A request is any chain of launches.
static void request(smidgen_session *session, const smidgen_kernel *kernel) {
    for (int launch = 0; launch < 10; ++launch) check(smidgen_session_launch(session, kernel));
}

static smidgen_graph *capture(smidgen_session *session, const smidgen_kernel *kernel) {
    smidgen_graph *graph;
    check(smidgen_session_begin_capture(session));
    request(session, kernel);
    check(smidgen_session_end_capture(session, &graph));
    return graph;
}

int main(int argc, char **argv) {
    check(smidgen_require_abi(SMIDGEN_ABI_VERSION));
    check(smidgen_set_log(log_line, NULL, SMIDGEN_LEVEL_WARN));

    smidgen_device *device = open_device(argc > 1 ? argv[1] : "examples/saxpy.ptx");
    smidgen_device_info info = {.struct_size = sizeof info};
    check(smidgen_device_describe(device, &info));

    smidgen_runtime_options options = {.struct_size = sizeof options, .policy = "static-equal"};
    smidgen_runtime *runtime;
    check(smidgen_runtime_create(device, &options, &runtime));
    smidgen_tenant tenant = admit(runtime, "ours", 8ull * COUNT);
    smidgen_session *session;
    check(smidgen_session_create(runtime, tenant, &session));
    uint64_t x, y;
    check(smidgen_session_allocate(session, 4ull * COUNT, &x));
    check(smidgen_session_allocate(session, 4ull * COUNT, &y));

    float *ones = malloc(4ull * COUNT);
    if (ones == NULL) return 1;
    for (size_t i = 0; i < COUNT; ++i) ones[i] = 1.0f;
    // In turn with what other tenants copy, latency tenants first.
    check(smidgen_session_transfer(session, x, ones, 4ull * COUNT, SMIDGEN_AFTER_LAUNCHES));
    check(smidgen_session_fill(session, y, 0, 4ull * COUNT));
    free(ones);

    // What the runtime must know of the kernel. Names are looked up once; launches compare pointers.
    const smidgen_name *saxpy;
    check(smidgen_name_get("saxpy", &saxpy));
    saxpy_args args = {.x = x, .y = y, .count = COUNT, .a = 2.0f};
    smidgen_kernel kernel = {
        .struct_size = sizeof kernel,
        .key = {.name = saxpy, .precision = SMIDGEN_PRECISION_F32, .rank = 1, .extents = {COUNT}},
        .work = {.flops = 2ull * COUNT, .bytes = 12ull * COUNT},
        .configure = configure,
        .launch = {.symbol = saxpy,
                   .params = &args,
                   .params_bytes = sizeof args,
                   .block = 256,
                   .blocks_per_sm = 8,
                   .tiles = (COUNT + TILE - 1) / TILE,
                   .flags = SMIDGEN_LAUNCH_ELASTIC},
    };

    // Eager at first: kernels are loaded, and the runtime learns what to plan for.
    request(session, &kernel);
    check(smidgen_session_learn(session));

    // Then as a graph, captured again whenever the plan has changed: here because a second tenant comes and takes half of the GPU.
    smidgen_graph *graph = capture(session, &kernel);
    for (int neighbours = 0; neighbours < 2; ++neighbours) {
        if (neighbours > 0) admit(runtime, "neighbour", 0);
        bool current;
        check(smidgen_session_is_current(session, graph, &current));
        if (!current) {
            check(smidgen_graph_destroy(&graph));
            graph = capture(session, &kernel);
        }
        uint64_t start, end;
        check(smidgen_session_synchronize(session));
        // What is told of a request lets others use its SMs between two, and plans follow how objectives are kept: this tenant has none.
        check(smidgen_device_now(device, &start));
        check(smidgen_session_begin_request(session));
        check(smidgen_session_replay(session, graph));
        check(smidgen_session_synchronize(session));
        check(smidgen_device_now(device, &end));
        check(smidgen_session_end_request(session));
        check(smidgen_session_answered(session, start, 0.0));
        // An engine does this on a thread that serves nobody, a few times a second.
        check(smidgen_runtime_adapt(runtime, NULL));
        smidgen_placement placement = {.struct_size = sizeof placement};
        check(smidgen_runtime_placement(runtime, tenant, &kernel.key, &placement));
        printf("10 launches of saxpy on %3u SMs: %.3f ms%s\n", placement.sms, (double)(end - start) / 1e6, info.simulated ? " (SIMULATED)" : "");
    }

    float first;
    check(smidgen_session_download(session, y, &first, sizeof first));
    if (!info.simulated && first != 60.0f) {
        fprintf(stderr, "30 launches added %g and not 60\n", (double)first);
        return 1;
    }

    check(smidgen_graph_destroy(&graph));
    check(smidgen_session_free(session, x));
    check(smidgen_session_free(session, y));
    check(smidgen_session_destroy(&session));
    check(smidgen_runtime_destroy(&runtime));
    check(smidgen_device_close(&device));
    return 0;
}
