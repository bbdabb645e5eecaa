// Runs kernels of a library on another processor: they and what they take come through standard input, what becomes of
// it goes back through standard output. Numbers are of 64 bits, in the order of remote_kernels.py.

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace {

void read(void* to, size_t bytes) {
    if (fread(to, 1, bytes, stdin) != bytes) exit(0);  // no more calls
}

int64_t read_number() {
    int64_t number;
    read(&number, sizeof number);
    return number;
}

struct Buffer {
    char* memory;
    size_t size;
};

}  // namespace

int main(int, char** arguments) {
    void* library = dlopen(arguments[1], RTLD_NOW);
    if (library == nullptr) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    for (;;) {
        std::string name(read_number(), 0);
        read(&name[0], name.size());
        std::vector<char> structure(read_number());
        read(structure.data(), structure.size());
        std::vector<Buffer> buffers(read_number());
        for (Buffer& buffer : buffers) {
            buffer.size = read_number();
            buffer.memory = (char*)aligned_alloc(64, (buffer.size + 127) / 64 * 64);
            read(buffer.memory, buffer.size);
        }
        for (int64_t count = read_number(); count > 0; --count) {
            int64_t field = read_number(), buffer = read_number(), offset = read_number();
            char* address = buffers[buffer].memory + offset;
            memcpy(structure.data() + field, &address, sizeof address);
        }
        auto kernel = (int (*)(const void*))dlsym(library, name.c_str());
        int64_t status = kernel == nullptr ? -1 : kernel(structure.data());
        fwrite(&status, sizeof status, 1, stdout);
        for (Buffer& buffer : buffers) {
            fwrite(buffer.memory, 1, buffer.size, stdout);
            free(buffer.memory);
        }
        fflush(stdout);
    }
}
