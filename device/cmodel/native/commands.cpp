// Kernels that were recorded, one after the other in one call.

#include <time.h>

#include <cstdint>

namespace {

struct Command {
    int (*kernel)(const void* arguments);
    const void* arguments;
};

// A field of some arguments that is so much for each row of the batch.
struct Count {
    int64_t* field;
    int64_t per_row;
};

struct RunCommands {
    const Command* commands;
    int64_t size;
    const Count* counts;
    int64_t count_size;
    int64_t rows;
    int64_t* done;  // commands that ran well
};

// note(i) is called before command i, and once more when all have run. The answer of the first kernel that does not answer
// 0, at which it stops, or 0.
template <class Note>
inline int run(const RunCommands& a, Note note) {
    for (int64_t i = 0; i < a.count_size; ++i) *a.counts[i].field = a.rows * a.counts[i].per_row;
    for (*a.done = 0; *a.done < a.size; ++*a.done) {
        const Command& command = a.commands[*a.done];
        note(*a.done);
        if (int status = command.kernel(command.arguments)) return status;
    }
    note(a.size);
    return 0;
}

}  // namespace

extern "C" {

__attribute__((visibility("default"))) int cmodel_run_commands(const RunCommands& a) {
    return run(a, [](int64_t) {});
}

// The same, with the time before each command and after the last: nanoseconds of the monotonic clock, size + 1 of them.
__attribute__((visibility("default"))) int cmodel_time_commands(const RunCommands& a, int64_t* times) {
    return run(a, [times](int64_t i) {
        timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        times[i] = now.tv_sec * int64_t{1000000000} + now.tv_nsec;
    });
}

}  // extern "C"
