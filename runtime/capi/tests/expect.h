// What the C programs among the tests say what they expect with. A surprise is reported with its line, and the program goes on; it exits with 1 after any.
#pragma once

#include <stdio.h>
#include <string.h>

#include "smidgen.h"

static int surprises = 0;

static void expect(int line, const char *call, smidgen_status found, smidgen_status wanted, const char *said) {
    if (found != wanted || (said && !strstr(smidgen_last_error(), said))) {
        fprintf(stderr, "line %d: %s\n    gave %s, `%s`\n    not %s, `%s`\n", line, call, smidgen_status_name(found), smidgen_last_error(),
                smidgen_status_name(wanted), said ? said : "");
        ++surprises;
    }
}

#define EXPECT(call, status, said) expect(__LINE__, #call, call, SMIDGEN_STATUS_##status, said)
#define EXPECT_OK(call) EXPECT(call, OK, NULL)
#define EXPECT_THAT(condition)                                              \
    do {                                                                    \
        if (!(condition)) {                                                 \
            fprintf(stderr, "line %d: not so: %s\n", __LINE__, #condition); \
            ++surprises;                                                    \
        }                                                                   \
    } while (0)
