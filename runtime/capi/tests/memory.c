// Whether a tenant is admitted depends on what the others were promised or have really allocated, each byte counted once. Exits with 1 after a surprise.
#include "expect.h"

static smidgen_runtime *runtime;

// Whether a second tenant of so many bytes is admitted; it is dismissed at once.
static bool fits(uint64_t bytes) {
    smidgen_tenant_spec spec = {.struct_size = sizeof spec, .tenant_class = SMIDGEN_CLASS_THROUGHPUT, .name = "second", .memory_bytes = bytes};
    smidgen_tenant second;
    smidgen_status status = smidgen_runtime_admit(runtime, &spec, &second);
    if (status == SMIDGEN_STATUS_NO_MEMORY) {
        EXPECT_THAT(strstr(smidgen_last_error(), "tenant `second` needs"));
        return false;
    }
    EXPECT(status, OK, NULL);
    EXPECT_OK(smidgen_runtime_dismiss(runtime, second));
    return true;
}

int main(void) {
    smidgen_device *device;
    EXPECT_OK(smidgen_device_open_simulator(NULL, 0, &device));
    smidgen_device_info info = {.struct_size = sizeof info};
    EXPECT_OK(smidgen_device_describe(device, &info));
    smidgen_runtime_options options = {.struct_size = sizeof options, .policy = "default-sharing"};

    // Without room for partitions all memory is the tenants'. 58 MB are ten partitions, made or kept.
    EXPECT_OK(smidgen_runtime_create_within(device, &options, 0, &runtime));
    EXPECT_OK(smidgen_device_describe(device, &info));
    EXPECT_THAT(fits(info.free_bytes) && !fits(info.free_bytes + 1));
    EXPECT_OK(smidgen_runtime_destroy(&runtime));
    EXPECT_OK(smidgen_runtime_create_within(device, &options, 58000000, &runtime));
    EXPECT_OK(smidgen_device_describe(device, &info));
    EXPECT_THAT(fits(info.free_bytes - 58000000) && !fits(info.free_bytes - 57999999));
    EXPECT_OK(smidgen_runtime_destroy(&runtime));
    EXPECT_OK(smidgen_runtime_create(device, &options, &runtime));

    // In eighths of the GPU, less what the runtime keeps for partitions, which is no eighth.
    const uint64_t eighth = info.free_bytes / 8;
    smidgen_tenant_spec spec = {.struct_size = sizeof spec, .tenant_class = SMIDGEN_CLASS_THROUGHPUT, .name = "first", .memory_bytes = 4 * eighth};
    smidgen_tenant first;
    smidgen_session *session, *another;
    EXPECT_OK(smidgen_runtime_admit(runtime, &spec, &first));
    EXPECT_OK(smidgen_session_create(runtime, first, &session));
    EXPECT_OK(smidgen_session_create(runtime, first, &another));
    EXPECT_THAT(fits(3 * eighth) && !fits(4 * eighth));

    // What was promised is there now, and is not kept any more.
    uint64_t promised, more, own;
    EXPECT_OK(smidgen_session_allocate(session, 4 * eighth, &promised));
    EXPECT_THAT(fits(3 * eighth) && !fits(4 * eighth));

    // What was not promised is taken all the same.
    EXPECT_OK(smidgen_session_allocate(session, 2 * eighth, &more));
    EXPECT_THAT(fits(1 * eighth) && !fits(2 * eighth));
    EXPECT_OK(smidgen_session_free(another, more));
    EXPECT_THAT(fits(3 * eighth) && !fits(4 * eighth));

    // What is given back is kept again.
    EXPECT_OK(smidgen_session_free(session, promised));
    EXPECT_THAT(fits(3 * eighth) && !fits(4 * eighth));

    // The device's own memory is nobody's, and the promise stays as it is.
    EXPECT_OK(smidgen_device_allocate(device, 2 * eighth, &own));
    EXPECT_THAT(fits(1 * eighth) && !fits(2 * eighth));
    EXPECT_OK(smidgen_device_free(device, own));

    // Memory outlives the session that allocated it, and its tenant.
    EXPECT_OK(smidgen_session_allocate(session, 2 * eighth, &more));
    EXPECT_OK(smidgen_session_destroy(&session));
    EXPECT_THAT(fits(3 * eighth) && !fits(4 * eighth));
    EXPECT_OK(smidgen_runtime_dismiss(runtime, first));
    EXPECT_THAT(fits(5 * eighth) && !fits(6 * eighth));
    EXPECT_OK(smidgen_session_free(another, more));
    EXPECT_THAT(fits(7 * eighth));

    EXPECT_OK(smidgen_session_destroy(&another));
    EXPECT_OK(smidgen_runtime_destroy(&runtime));
    EXPECT_OK(smidgen_device_close(&device));
    return surprises != 0;
}
