// What C can do wrong, and what it gets: every call here is a mistake or follows one, on the simulator. Exits with 1 after a surprise.
#include "expect.h"

// Measured on an H200, which the simulator stands in for.
#define PROFILE "profiles/h200.json"

static int warnings = 0;

static void count(int32_t level, const char *message, void *user) {
    EXPECT_THAT(level >= SMIDGEN_LEVEL_ERROR && level <= SMIDGEN_LEVEL_WARN);
    EXPECT_THAT(message[0] != '\0');
    EXPECT_THAT(user == &warnings);
    ++warnings;
}

static smidgen_session *busy;
static smidgen_kernel *again;

// Uses the session that it is called by.
static int32_t reenter(uint32_t sms, smidgen_launch *launch, void *user) {
    EXPECT_THAT(sms == 132 && user == &busy);
    uint64_t address;
    EXPECT(smidgen_session_launch(busy, again), BUSY, "in use");
    EXPECT(smidgen_session_allocate(busy, 1, &address), BUSY, "in use");
    EXPECT(smidgen_session_free(busy, 4096), BUSY, "in use");
    EXPECT(smidgen_session_destroy(&busy), BUSY, "in use");
    launch->grid = 1;
    return 0;
}

static int32_t refuse(uint32_t sms, smidgen_launch *launch, void *user) {
    (void)sms, (void)launch, (void)user;
    return 7;
}

static void versions(void) {
    EXPECT_THAT(smidgen_abi_version() == SMIDGEN_ABI_VERSION);
    EXPECT_OK(smidgen_require_abi(SMIDGEN_ABI_VERSION));
    EXPECT(smidgen_require_abi(SMIDGEN_ABI_VERSION + 1), VERSION, "compile it with the library's own header");
    EXPECT(smidgen_require_abi(SMIDGEN_ABI_VERSION + 0x10000), VERSION, "2.4");
    // As long as in 1.0, where pointers have 64 bits: a program that was compiled with any header of 1.x is served.
    EXPECT_THAT(sizeof(smidgen_device_info) == 112 && sizeof(smidgen_runtime_options) == 32 && sizeof(smidgen_tenant_spec) == 32);
    EXPECT_THAT(sizeof(smidgen_placement) == 16 && sizeof(smidgen_kernel) == 136 && sizeof(smidgen_opaque) == 16 && sizeof(smidgen_stats) == 32);
    EXPECT_THAT(strcmp(smidgen_status_name(12345), "unknown status") == 0);
}

static void logs(void) {
    EXPECT(smidgen_set_log(NULL, NULL, SMIDGEN_LEVEL_WARN), NULL, "`log` is null");
    EXPECT(smidgen_set_log(count, &warnings, 9), ARGUMENT, "no smidgen_level");
    EXPECT_OK(smidgen_set_log(count, &warnings, SMIDGEN_LEVEL_WARN));
    EXPECT(smidgen_set_log(count, &warnings, SMIDGEN_LEVEL_WARN), STATE, "already");
}

static void devices(smidgen_device *device) {
    smidgen_device *other = device;
    EXPECT(smidgen_device_open_cuda(4000000, &other), NO_GPU, NULL);
    EXPECT_THAT(other == NULL);
    EXPECT(smidgen_device_open_cuda(0, NULL), NULL, "`device` is null");
    EXPECT(smidgen_device_open_simulator(NULL, 2, &other), NULL, "`profiles` is null");
    const char *missing[] = {"/nowhere/profile.json"};
    EXPECT(smidgen_device_open_simulator(missing, 1, &other), PROFILE, "/nowhere/profile.json");
    EXPECT(smidgen_device_close(NULL), NULL, "`device` is null");
    EXPECT_OK(smidgen_device_close(&other)); // it is null

    smidgen_device_info info = {0};
    EXPECT(smidgen_device_describe(device, &info), VERSION, "`smidgen_device_info.struct_size` is 0");
    EXPECT(smidgen_device_describe(device, NULL), NULL, "`info` is null");
    info.struct_size = sizeof info;
    EXPECT(smidgen_device_describe(NULL, &info), NULL, "`device` is null");
    EXPECT_OK(smidgen_device_describe(device, &info));
    EXPECT_THAT(info.simulated == 1 && info.sms == 132 && info.sms_per_tpc == 2 && strstr(info.name, "H200"));

    uint64_t address = 1;
    EXPECT(smidgen_device_allocate(device, UINT64_MAX / 2, &address), NO_MEMORY, "free; use a smaller batch");
    EXPECT_THAT(address == 0);
    EXPECT(smidgen_device_allocate(device, 1, NULL), NULL, "`address` is null");
    EXPECT_OK(smidgen_device_free(device, 0));
    EXPECT(smidgen_device_load(device, NULL, 10), NULL, "`image` is null");
    EXPECT(smidgen_device_now(device, NULL), NULL, "`nanoseconds` is null");
    EXPECT(smidgen_device_bind_thread(NULL), NULL, "`device` is null");
}

static void names(void) {
    const smidgen_name *one, *two;
    EXPECT_OK(smidgen_name_get("gemm", &one));
    EXPECT_OK(smidgen_name_get("gemm", &two));
    EXPECT_THAT(one == two);
    EXPECT(smidgen_name_get("", &one), ARGUMENT, "is no name");
    EXPECT_THAT(one == NULL);
    EXPECT(smidgen_name_get("gemm[8]", &one), ARGUMENT, "`gemm[8]` is no name");
    EXPECT(smidgen_name_get("\xff", &one), ARGUMENT, "not UTF-8");
    EXPECT(smidgen_name_get(NULL, &one), NULL, "`spelling` is null");
    EXPECT(smidgen_name_get("gemm", NULL), NULL, "`name` is null");
}

static smidgen_runtime *create(smidgen_device *device) {
    smidgen_runtime_options options = {.struct_size = sizeof options, .policy = "fairest"};
    smidgen_runtime *runtime = NULL;
    EXPECT(smidgen_runtime_create(device, &options, &runtime), UNKNOWN_POLICY, "there is no policy `fairest`; there are");
    EXPECT_THAT(runtime == NULL);
    options.policy = NULL;
    EXPECT(smidgen_runtime_create(device, &options, &runtime), NULL, "`options.policy` is null");
    options.policy = "static-equal";
    options.struct_size += 8;
    EXPECT(smidgen_runtime_create(device, &options, &runtime), VERSION, "sizeof(smidgen_runtime_options)");
    options.struct_size = sizeof options;
    const char *missing[] = {"/nowhere/profile.json"};
    options.profiles = missing;
    options.profile_count = 1;
    EXPECT(smidgen_runtime_create(device, &options, &runtime), PROFILE, "/nowhere/profile.json");
    const char *measured[] = {PROFILE};
    options.profiles = measured;
    options.kernel_build = "others";
    int before = warnings;
    EXPECT_OK(smidgen_runtime_create(device, &options, &runtime));
    EXPECT_THAT(warnings == before + 1); // the profile is of other kernels
    EXPECT_OK(smidgen_runtime_destroy(&runtime));
    options.profile_count = 0;
    EXPECT(smidgen_runtime_create(NULL, &options, &runtime), NULL, "`device` is null");
    EXPECT_OK(smidgen_runtime_create(device, &options, &runtime));
    EXPECT(smidgen_runtime_set_policy(runtime, "fairest"), UNKNOWN_POLICY, "`fairest`");
    EXPECT_OK(smidgen_runtime_set_policy(runtime, "static-equal"));
    return runtime;
}

static smidgen_tenant admit(smidgen_runtime *runtime) {
    smidgen_tenant_spec spec = {.struct_size = sizeof spec, .tenant_class = 7, .name = "ours", .memory_bytes = 1 << 30};
    smidgen_tenant tenant;
    EXPECT(smidgen_runtime_admit(runtime, &spec, &tenant), ARGUMENT, "`spec.tenant_class` is 7");
    spec.tenant_class = SMIDGEN_CLASS_THROUGHPUT;
    EXPECT(smidgen_runtime_admit(runtime, &spec, NULL), NULL, "`tenant` is null");
    EXPECT(smidgen_runtime_admit(NULL, &spec, &tenant), NULL, "`runtime` is null");
    spec.name = NULL;
    EXPECT(smidgen_runtime_admit(runtime, &spec, &tenant), NULL, "`spec.name` is null");
    spec.name = "ours";
    spec.memory_bytes = 1ull << 60;
    EXPECT(smidgen_runtime_admit(runtime, &spec, &tenant), NO_MEMORY, "tenant `ours` needs");
    spec.memory_bytes = 1 << 30;
    EXPECT_OK(smidgen_runtime_admit(runtime, &spec, &tenant));
    EXPECT(smidgen_runtime_dismiss(runtime, tenant + 1), UNKNOWN_TENANT, NULL);
    smidgen_placement placement = {.struct_size = sizeof placement};
    EXPECT(smidgen_runtime_placement(runtime, tenant + 1, NULL, &placement), UNKNOWN_TENANT, NULL);
    placement.struct_size -= 4;
    EXPECT(smidgen_runtime_placement(runtime, tenant, NULL, &placement), VERSION, "`smidgen_placement.struct_size` is 12 and not 16");
    EXPECT_THAT(placement.sms == 0);
    placement.struct_size = sizeof placement;
    EXPECT_OK(smidgen_runtime_placement(runtime, tenant, NULL, &placement));
    EXPECT_THAT(placement.sms == 132 && placement.granted_sms == 132 && placement.priority == SMIDGEN_PRIORITY_NORMAL);
    return tenant;
}

static smidgen_kernel fill_kernel(void) {
    const smidgen_name *name;
    EXPECT_OK(smidgen_name_get("fill", &name));
    return (smidgen_kernel){
        .struct_size = sizeof(smidgen_kernel),
        .key = {.name = name, .rank = 1, .extents = {528}},
        .work = {.bytes = 40000000},
        .launch = {.symbol = name, .block = 128, .blocks_per_sm = 1, .tiles = 528},
    };
}

static void launches(smidgen_session *session) {
    smidgen_kernel good = fill_kernel(), bad = good;
    EXPECT_OK(smidgen_session_launch(session, &good));
    EXPECT(smidgen_session_launch(NULL, &good), NULL, "`session` is null");
    EXPECT(smidgen_session_launch(session, NULL), NULL, "`kernel` is null");
    bad.struct_size = 0;
    EXPECT(smidgen_session_launch(session, &bad), VERSION, "set it to sizeof(smidgen_kernel)");
    bad = good, bad.key.name = NULL;
    EXPECT(smidgen_session_launch(session, &bad), NULL, "`key.name` is null");
    bad = good, bad.key.rank = 7;
    EXPECT(smidgen_session_launch(session, &bad), ARGUMENT, "`key.rank` is 7");
    bad = good, bad.key.precision = 2;
    EXPECT(smidgen_session_launch(session, &bad), ARGUMENT, "`key.precision` is 2");
    bad = good, bad.launch.symbol = NULL;
    EXPECT(smidgen_session_launch(session, &bad), NULL, "`launch.symbol` is null");
    bad = good, bad.launch.params_bytes = 8;
    EXPECT(smidgen_session_launch(session, &bad), NULL, "`launch.params` is null");
    bad = good, bad.launch.params = &bad, bad.launch.params_bytes = SMIDGEN_MAX_PARAM_BYTES + 1;
    EXPECT(smidgen_session_launch(session, &bad), ARGUMENT, "parameters have 768 bytes at most");
    bad = good, bad.launch.block = 0;
    EXPECT(smidgen_session_launch(session, &bad), ARGUMENT, "`launch.block` is 0");
    bad = good, bad.launch.flags = 4;
    EXPECT(smidgen_session_launch(session, &bad), ARGUMENT, "does not know");
    bad = good, bad.launch.reserved[1] = 1;
    EXPECT(smidgen_session_launch(session, &bad), ARGUMENT, "does not know");
    bad = good, bad.launch.block = 2048;
    EXPECT(smidgen_session_launch(session, &bad), DEVICE, "2048 threads");
    bad = good, bad.configure = refuse;
    EXPECT(smidgen_session_launch(session, &bad), UNSUPPORTED, "fill[528]f16 cannot do this shape: its configure callback returned 7 for 132 SMs");

    busy = session, again = &good;
    bad = good, bad.configure = reenter, bad.user = &busy;
    EXPECT_OK(smidgen_session_launch(session, &bad));
    EXPECT_THAT(busy == session);

    smidgen_opaque opaque = {.struct_size = sizeof opaque};
    EXPECT(smidgen_session_launch_opaque(session, NULL, &good.work, &opaque), NULL, "`key` is null");
    EXPECT(smidgen_session_launch_opaque(session, &good.key, NULL, &opaque), NULL, "`work` is null");
    EXPECT(smidgen_session_launch_opaque(session, &good.key, &good.work, NULL), NULL, "`opaque` is null");
    opaque.struct_size = 1;
    EXPECT(smidgen_session_launch_opaque(session, &good.key, &good.work, &opaque), VERSION, "smidgen_opaque");
    opaque.struct_size = sizeof opaque;
    EXPECT_OK(smidgen_session_launch_opaque(session, &good.key, &good.work, &opaque));
    void *stream;
    EXPECT_OK(smidgen_session_stream(session, &stream));
    EXPECT_THAT(opaque.sms == 132 && opaque.stream == stream);

    // Nothing that was refused is counted.
    smidgen_stats stats = {.struct_size = sizeof stats};
    EXPECT_OK(smidgen_session_stats(session, &stats));
    EXPECT_THAT(stats.launches == 3 && stats.replays == 0);
    EXPECT(smidgen_session_stats(session, NULL), NULL, "`stats` is null");
}

static void requests(smidgen_runtime *runtime, smidgen_tenant tenant, smidgen_session *session) {
    uint64_t now = 0, due = 1;
    bool changed = true;
    EXPECT(smidgen_session_begin_request(NULL), NULL, "`session` is null");
    EXPECT_OK(smidgen_session_begin_request(session));
    EXPECT_OK(smidgen_session_grow(session, &changed));
    EXPECT_THAT(!changed);
    EXPECT_OK(smidgen_session_grow(session, NULL));
    EXPECT_OK(smidgen_session_end_request(session));
    EXPECT(smidgen_session_answered(session, now, -1.0), ARGUMENT, "`spent` is -1");
    EXPECT_OK(smidgen_session_answered(session, now, 0.5));
    EXPECT_OK(smidgen_session_begin_capture(session));
    EXPECT(smidgen_session_begin_request(session), STATE, "capture");
    EXPECT(smidgen_session_end_request(session), STATE, "capture");
    smidgen_graph *none;
    EXPECT_OK(smidgen_session_end_capture(session, &none));
    EXPECT_OK(smidgen_graph_destroy(&none));

    changed = true;
    EXPECT_OK(smidgen_runtime_adapt(runtime, &changed));
    EXPECT_THAT(!changed); // the policy plans the same whatever tenants do
    EXPECT_OK(smidgen_runtime_adapt(runtime, NULL));
    EXPECT(smidgen_runtime_settle(runtime, NULL), NULL, "`next_nanoseconds` is null");
    EXPECT_OK(smidgen_runtime_settle(runtime, &due));
    EXPECT_THAT(due > 1);

    EXPECT(smidgen_runtime_expect_rate(runtime, tenant, -3.0), ARGUMENT, "`per_second` is -3");
    EXPECT(smidgen_runtime_expect_rate(runtime, tenant + 1, 3.0), UNKNOWN_TENANT, NULL);
    EXPECT_OK(smidgen_runtime_expect_rate(runtime, tenant, 100.0));
    EXPECT_OK(smidgen_runtime_expect_rate(runtime, tenant, 0.0));
    EXPECT(smidgen_runtime_set_objective(runtime, tenant, 9, 0), ARGUMENT, "`tenant_class` is 9");
    EXPECT_OK(smidgen_runtime_set_objective(runtime, tenant, SMIDGEN_CLASS_LATENCY, 1000000));
    EXPECT_OK(smidgen_runtime_set_objective(runtime, tenant, SMIDGEN_CLASS_THROUGHPUT, 0));

    smidgen_kernel kernel = fill_kernel();
    smidgen_placement placement = {.struct_size = sizeof placement};
    EXPECT(smidgen_runtime_resize(runtime, tenant, 1000000), PARTITION, "132 are free");
    EXPECT_OK(smidgen_runtime_resize(runtime, tenant, 7));
    EXPECT_OK(smidgen_runtime_placement(runtime, tenant, NULL, &placement));
    EXPECT_THAT(placement.sms == 8); // whole TPCs
    EXPECT_OK(smidgen_runtime_resize(runtime, tenant, 0));
    smidgen_session *another;
    bool done = true;
    EXPECT_OK(smidgen_runtime_pause(runtime, tenant));
    EXPECT(smidgen_session_launch(session, &kernel), STATE, "paused");
    EXPECT(smidgen_session_begin_request(session), STATE, "paused");
    EXPECT(smidgen_session_create(runtime, tenant, &another), STATE, "paused");
    EXPECT_THAT(another == NULL);
    EXPECT(smidgen_session_mark(session), STATE, "paused");
    EXPECT(smidgen_session_is_done(session, &done), STATE, "nothing is marked");
    EXPECT(smidgen_runtime_placement(runtime, tenant, NULL, &placement), STATE, "paused");
    EXPECT_OK(smidgen_runtime_resume(runtime, tenant));
    EXPECT_OK(smidgen_runtime_resume(runtime, tenant)); // twice
    EXPECT_OK(smidgen_session_launch(session, &kernel));
    EXPECT(smidgen_runtime_pause(runtime, tenant + 1), UNKNOWN_TENANT, NULL);

    EXPECT(smidgen_session_is_done(session, &done), STATE, "nothing is marked");
    EXPECT_OK(smidgen_session_mark(session));
    EXPECT(smidgen_session_is_done(session, NULL), NULL, "`done` is null");
    EXPECT_OK(smidgen_session_is_done(session, &done));
    EXPECT_THAT(!done); // launched, and nobody has waited yet
    for (int polls = 0; !done && polls < 1000; ++polls) EXPECT_OK(smidgen_session_is_done(session, &done));
    EXPECT_THAT(done);
    bool replanned = true;
    EXPECT_OK(smidgen_runtime_correct(runtime, &replanned));
    EXPECT_THAT(!replanned);
    EXPECT_OK(smidgen_runtime_correct(runtime, NULL));
}

static void transfers(smidgen_device *device, smidgen_runtime *runtime, smidgen_tenant tenant, smidgen_session *session) {
    enum { COUNT = 12 << 20 }; // three chunks, of which the rate lets two go at once
    static uint8_t sent[COUNT];
    uint8_t received[4] = {0};
    uint64_t address, before = 0, after = 0;
    memcpy(sent, (uint8_t[]){1, 2, 3, 4}, 4);
    EXPECT_OK(smidgen_device_allocate(device, COUNT, &address));
    EXPECT(smidgen_session_transfer(session, address, NULL, 4, SMIDGEN_AFTER_LAUNCHES), NULL, "`source` is null");
    EXPECT(smidgen_session_transfer(session, address, sent, COUNT, 2), ARGUMENT, "`after` is 2");
    EXPECT(smidgen_runtime_limit_transfers(runtime, tenant + 1, 1000000000), UNKNOWN_TENANT, NULL);
    EXPECT_OK(smidgen_runtime_limit_transfers(runtime, tenant, 1000000000));
    EXPECT_OK(smidgen_runtime_limit_throughput_transfers(runtime, 1000000000));
    EXPECT_OK(smidgen_device_now(device, &before));
    EXPECT_OK(smidgen_session_transfer(session, address, sent, COUNT, SMIDGEN_AFTER_LAUNCHES));
    EXPECT_OK(smidgen_device_now(device, &after));
    EXPECT_THAT(after - before >= COUNT / 3); // the third waits for a byte a nanosecond
    EXPECT_OK(smidgen_runtime_limit_transfers(runtime, tenant, 0));
    EXPECT_OK(smidgen_runtime_limit_throughput_transfers(runtime, 0));
    EXPECT_OK(smidgen_session_transfer(session, address, sent, 4, SMIDGEN_AFTER_NOTHING));
    EXPECT_OK(smidgen_session_download(session, address, received, 4));
    EXPECT_THAT(memcmp(sent, received, 4) == 0);
    EXPECT_OK(smidgen_device_free(device, address));
}

static void copies(smidgen_device *device, smidgen_session *session) {
    uint64_t address;
    uint32_t sent = 0x12345678, received = 0;
    EXPECT_OK(smidgen_device_allocate(device, sizeof sent, &address));
    EXPECT(smidgen_session_upload(session, address, NULL, 4), NULL, "`source` is null");
    EXPECT(smidgen_session_upload(session, 0, &sent, sizeof sent), DEVICE, "not in one allocation");
    EXPECT(smidgen_session_download(session, address, NULL, 4), NULL, "`target` is null");
    EXPECT(smidgen_session_download(session, address, &received, (size_t)1 << 60), NO_MEMORY, "copy in parts");
    EXPECT_OK(smidgen_session_upload(session, address, &sent, sizeof sent));
    EXPECT_OK(smidgen_session_download(session, address, &received, sizeof received));
    EXPECT_THAT(received == sent);
    EXPECT_OK(smidgen_session_fill(session, address, 0xab, sizeof sent));
    EXPECT_OK(smidgen_session_download(session, address, &received, sizeof received));
    EXPECT_THAT(received == 0xabababab);
    EXPECT_OK(smidgen_device_free(device, address));
}

static void memory(smidgen_session *session) {
    uint64_t address = 1;
    EXPECT(smidgen_session_allocate(NULL, 1, &address), NULL, "`session` is null");
    EXPECT_THAT(address == 0);
    EXPECT(smidgen_session_allocate(session, 1, NULL), NULL, "`address` is null");
    address = 1;
    EXPECT(smidgen_session_allocate(session, UINT64_MAX / 2, &address), NO_MEMORY, "free; use a smaller batch");
    EXPECT_THAT(address == 0);
    EXPECT_OK(smidgen_session_allocate(session, 0, &address));
    EXPECT_THAT(address != 0);
    EXPECT(smidgen_session_free(NULL, address), NULL, "`session` is null");
    EXPECT_OK(smidgen_session_free(session, address));
    EXPECT_OK(smidgen_session_free(session, 0));
}

static void graphs(smidgen_runtime *runtime, smidgen_tenant tenant, smidgen_session *session) {
    smidgen_kernel kernel = fill_kernel();
    smidgen_graph *graph = (smidgen_graph *)&kernel, *none;
    EXPECT(smidgen_session_end_capture(session, &graph), STATE, "no capture is in progress");
    EXPECT_THAT(graph == NULL);
    graph = (smidgen_graph *)&kernel;
    EXPECT(smidgen_session_end_capture(NULL, &graph), NULL, "`session` is null");
    EXPECT_THAT(graph == NULL);
    EXPECT_OK(smidgen_session_begin_capture(session));
    EXPECT(smidgen_session_begin_capture(session), STATE, "a capture is in progress");
    EXPECT_OK(smidgen_session_launch(session, &kernel));
    uint8_t byte = 0;
    EXPECT(smidgen_session_synchronize(session), STATE, "a capture is in progress");
    EXPECT(smidgen_session_upload(session, 4096, &byte, 1), STATE, "a capture is in progress");
    EXPECT(smidgen_session_download(session, 4096, &byte, 1), STATE, "a capture is in progress");
    EXPECT(smidgen_session_mark(session), STATE, "a capture is in progress");
    bool done = true;
    EXPECT(smidgen_session_is_done(session, &done), STATE, "a capture is in progress");
    EXPECT(smidgen_session_grow(session, NULL), STATE, "a capture is in progress");
    EXPECT(smidgen_session_transfer(session, 4096, &byte, 1, SMIDGEN_AFTER_LAUNCHES), STATE, "a capture is in progress");
    uint64_t address = 1;
    EXPECT(smidgen_session_allocate(session, 1, &address), STATE, "a capture is in progress");
    EXPECT_THAT(address == 0);
    EXPECT(smidgen_session_free(session, 4096), STATE, "a capture is in progress");
    EXPECT(smidgen_session_learn(session), STATE, "a capture is in progress");
    EXPECT_OK(smidgen_session_end_capture(session, &graph));
    EXPECT_OK(smidgen_session_replay(session, graph));
    EXPECT(smidgen_session_replay(session, NULL), NULL, "`graph` is null");

    EXPECT_OK(smidgen_session_begin_capture(session));
    EXPECT(smidgen_session_replay(session, graph), STATE, "a capture is in progress");
    EXPECT_OK(smidgen_session_end_capture(session, &none));
    EXPECT_OK(smidgen_graph_destroy(&none));

    smidgen_session *other;
    EXPECT_OK(smidgen_session_create(runtime, tenant, &other));
    EXPECT(smidgen_session_replay(other, graph), WRONG_SESSION, "another session");
    bool current = false;
    EXPECT(smidgen_session_is_current(other, graph, &current), WRONG_SESSION, "another session");
    EXPECT_OK(smidgen_session_destroy(&other));

    EXPECT_OK(smidgen_session_is_current(session, graph, &current));
    EXPECT_THAT(current);
    smidgen_tenant_spec neighbour = {
        .struct_size = sizeof neighbour, .tenant_class = SMIDGEN_CLASS_THROUGHPUT, .name = "neighbour", .memory_bytes = 1 << 30};
    smidgen_tenant comes_and_goes;
    EXPECT_OK(smidgen_runtime_admit(runtime, &neighbour, &comes_and_goes));
    EXPECT_OK(smidgen_session_is_current(session, graph, &current));
    EXPECT_THAT(!current);
    smidgen_placement placement = {.struct_size = sizeof placement};
    EXPECT_OK(smidgen_runtime_placement(runtime, tenant, &kernel.key, &placement));
    EXPECT_THAT(placement.sms == 66);
    EXPECT_OK(smidgen_runtime_dismiss(runtime, comes_and_goes));

    EXPECT_OK(smidgen_session_synchronize(session));
    EXPECT_OK(smidgen_graph_destroy(&graph));
    EXPECT_THAT(graph == NULL);
    EXPECT_OK(smidgen_graph_destroy(&graph)); // twice
    EXPECT(smidgen_graph_destroy(NULL), NULL, "`graph` is null");
}

// What the profile says of a kernel decides its placement, and what objective is possible.
static void profiled(smidgen_device *device) {
    const char *measured[] = {PROFILE};
    smidgen_runtime_options options = {.struct_size = sizeof options, .policy = "krisp-i", .profiles = measured, .profile_count = 1};
    smidgen_runtime *runtime;
    EXPECT_OK(smidgen_runtime_create(device, &options, &runtime));
    smidgen_tenant_spec spec = {
        .struct_size = sizeof spec, .tenant_class = SMIDGEN_CLASS_LATENCY, .name = "chat", .slo_nanoseconds = 1000, .memory_bytes = 1};
    smidgen_tenant hasty, patient;
    EXPECT_OK(smidgen_runtime_admit(runtime, &spec, &hasty));
    smidgen_kernel kernel = fill_kernel();
    EXPECT_OK(smidgen_name_get("attention_decode", &kernel.key.name));
    kernel.key.rank = 5;
    memcpy(kernel.key.extents, (uint32_t[]){8, 32, 8, 64, 256}, 5 * sizeof(uint32_t));

    smidgen_session *session;
    EXPECT_OK(smidgen_session_create(runtime, hasty, &session));
    EXPECT_OK(smidgen_session_launch(session, &kernel));
    EXPECT(smidgen_session_learn(session), IMPOSSIBLE_SLO, "its SLO of 0.001 ms is below its isolated latency");
    EXPECT_OK(smidgen_runtime_dismiss(runtime, hasty));
    EXPECT_OK(smidgen_session_destroy(&session));

    spec.slo_nanoseconds = 1000000;
    EXPECT_OK(smidgen_runtime_admit(runtime, &spec, &patient));
    EXPECT_THAT(patient != hasty);
    EXPECT_OK(smidgen_session_create(runtime, patient, &session));
    EXPECT_OK(smidgen_session_launch(session, &kernel));
    EXPECT_OK(smidgen_session_learn(session));
    smidgen_placement placement = {.struct_size = sizeof placement};
    EXPECT_OK(smidgen_runtime_placement(runtime, patient, &kernel.key, &placement));
    EXPECT_THAT(placement.sms == 80); // its minimum there
    EXPECT_OK(smidgen_session_forget_counts(session));
    EXPECT_OK(smidgen_session_destroy(&session));
    EXPECT_OK(smidgen_runtime_destroy(&runtime));
}

// Where the others cannot be planned for, the tenant is gone all the same.
static void dismissal_without_memory(smidgen_device *device) {
    smidgen_runtime_options options = {.struct_size = sizeof options, .policy = "default-sharing"};
    smidgen_runtime *runtime;
    EXPECT_OK(smidgen_runtime_create(device, &options, &runtime));
    smidgen_tenant_spec spec = {.struct_size = sizeof spec, .tenant_class = SMIDGEN_CLASS_THROUGHPUT, .name = "a", .memory_bytes = 1};
    smidgen_tenant tenants[3];
    for (int at = 0; at < 3; ++at) EXPECT_OK(smidgen_runtime_admit(runtime, &spec, &tenants[at]));
    EXPECT_OK(smidgen_runtime_set_policy(runtime, "static-equal"));

    smidgen_device_info info = {.struct_size = sizeof info};
    uint64_t rest;
    EXPECT_OK(smidgen_device_describe(device, &info));
    EXPECT_OK(smidgen_device_allocate(device, info.free_bytes - (1 << 20), &rest));
    EXPECT(smidgen_runtime_dismiss(runtime, tenants[0]), NO_MEMORY, "out of device memory");
    EXPECT(smidgen_runtime_dismiss(runtime, tenants[0]), UNKNOWN_TENANT, NULL);
    smidgen_placement placement = {.struct_size = sizeof placement};
    EXPECT_OK(smidgen_runtime_placement(runtime, tenants[1], NULL, &placement));
    EXPECT_THAT(placement.sms == 44);
    EXPECT_OK(smidgen_device_free(device, rest));
    EXPECT_OK(smidgen_runtime_destroy(&runtime));
}

static void after_dismissal(smidgen_runtime *runtime, smidgen_tenant tenant, smidgen_session *session) {
    smidgen_kernel kernel = fill_kernel();
    smidgen_opaque opaque = {.struct_size = sizeof opaque};
    smidgen_session *another = session;
    EXPECT_OK(smidgen_runtime_dismiss(runtime, tenant));
    EXPECT(smidgen_session_launch(session, &kernel), UNKNOWN_TENANT, "this tenant was dismissed; admit it again to launch");
    EXPECT(smidgen_session_launch_opaque(session, &kernel.key, &kernel.work, &opaque), UNKNOWN_TENANT, "dismissed");
    EXPECT(smidgen_session_begin_capture(session), UNKNOWN_TENANT, "dismissed");
    EXPECT(smidgen_session_learn(session), UNKNOWN_TENANT, "dismissed");
    EXPECT(smidgen_session_create(runtime, tenant, &another), UNKNOWN_TENANT, "dismissed");
    EXPECT_THAT(another == NULL);
    EXPECT(smidgen_runtime_dismiss(runtime, tenant), UNKNOWN_TENANT, "dismissed");
    EXPECT_OK(smidgen_session_synchronize(session));
}

int main(void) {
    versions();
    logs();
    names();
    smidgen_device *device;
    EXPECT_OK(smidgen_device_open_simulator(NULL, 0, &device));
    devices(device);
    smidgen_runtime *runtime = create(device);
    smidgen_tenant tenant = admit(runtime);
    smidgen_session *session;
    EXPECT_OK(smidgen_session_create(runtime, tenant, &session));
    launches(session);
    requests(runtime, tenant, session);
    memory(session);
    copies(device, session);
    transfers(device, runtime, tenant, session);
    graphs(runtime, tenant, session);
    profiled(device);
    dismissal_without_memory(device);
    after_dismissal(runtime, tenant, session);

    // In an order that is not that of creation.
    EXPECT_OK(smidgen_device_close(&device));
    EXPECT_OK(smidgen_runtime_destroy(&runtime));
    EXPECT_OK(smidgen_session_synchronize(session));
    EXPECT_OK(smidgen_session_destroy(&session));
    EXPECT_OK(smidgen_session_destroy(&session)); // twice
    EXPECT_THAT(device == NULL && runtime == NULL && session == NULL);
    if (surprises == 0) printf("every mistake was answered\n");
    return surprises != 0;
}
