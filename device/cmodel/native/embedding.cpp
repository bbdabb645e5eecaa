// Rows of a table, which may also be a packed weight.

#include <cstdint>
#include <cstring>

#include "threads.h"

namespace {

constexpr int64_t ROWS_OF_ITEM = 64, PANEL = 32;
constexpr int BAD_ARGUMENT = 1;

struct Embedding {
    const int32_t* ids;  // [rows]
    int64_t rows;
    const char* table;
    int64_t table_rows, row_bytes;
    int64_t piece_bytes, pieces;  // of a packed weight, see kernels/gemm.h: [panels][pieces][32][piece_bytes]; else 0
    int64_t first;                // the id of the table's first row
    int64_t partial;              // whether ids beyond the table are allowed; their rows are 0
    char* out;                    // [rows, row_bytes]
};

void read(const Embedding& a, int64_t row, char* out) {
    if (a.pieces == 0) {
        std::memcpy(out, a.table + row * a.row_bytes, a.row_bytes);
        return;
    }
    const char* from = a.table + (row / PANEL * a.pieces * PANEL + row % PANEL) * a.piece_bytes;
    for (int64_t at = 0; at < a.row_bytes; at += a.piece_bytes, from += PANEL * a.piece_bytes) {
        std::memcpy(out + at, from, a.row_bytes - at < a.piece_bytes ? a.row_bytes - at : a.piece_bytes);
    }
}

}  // namespace

extern "C" __attribute__((visibility("default"))) int cmodel_embedding(const Embedding& a) {
    auto inside = [&](int64_t row) { return a.ids[row] >= a.first && a.ids[row] - a.first < a.table_rows; };
    for (int64_t row = 0; row < a.rows; ++row) {
        if (!a.partial && !inside(row)) return BAD_ARGUMENT;
    }
    cmodel::parallel_for((a.rows + ROWS_OF_ITEM - 1) / ROWS_OF_ITEM, [&](int64_t item, int) {
        for (int64_t row = item * ROWS_OF_ITEM; row < a.rows && row < (item + 1) * ROWS_OF_ITEM; ++row) {
            if (inside(row)) {
                read(a, a.ids[row] - a.first, a.out + row * a.row_bytes);
            } else {
                std::memset(a.out + row * a.row_bytes, 0, a.row_bytes);
            }
        }
    });
    return 0;
}
