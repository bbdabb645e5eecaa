// Kernels that were recorded, one after the other in one call.

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

}  // namespace

// The answer of the first kernel that does not answer 0, at which it stops, or 0.
extern "C" __attribute__((visibility("default"))) int cmodel_run_commands(const RunCommands& a) {
    for (int64_t i = 0; i < a.count_size; ++i) *a.counts[i].field = a.rows * a.counts[i].per_row;
    for (*a.done = 0; *a.done < a.size; ++*a.done) {
        const Command& command = a.commands[*a.done];
        if (int status = command.kernel(command.arguments)) return status;
    }
    return 0;
}
